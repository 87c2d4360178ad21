use std::io::{Cursor, Read};

use proptest::prelude::*;

use super::*;
use crate::Section;
use crate::fingerprint::MachineFingerprint;

fn header() -> Header {
    Header {
        producer: "baton test".into(),
        fingerprint: MachineFingerprint {
            machine_type: "baton-1.0".into(),
            vcpus: 1,
            ..MachineFingerprint::default()
        },
    }
}

fn stream(sections: &[(&str, u32, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = SectionWriter::new(&mut bytes, &header()).unwrap();
    for (name, instance, version, payload) in sections {
        writer.put_raw(name, *instance, *version, payload).unwrap();
    }
    writer.finish().unwrap();
    bytes
}

fn sample() -> Vec<u8> {
    stream(&[
        ("machine/cpu", 0, 1, b"registers"),
        ("0000:00:01.0/virtio-rng", 0, 2, b""),
    ])
}

/// A stream made by hand after a correct header, for what the writer refuses to write.
fn by_hand(rest: &[u8]) -> Vec<u8> {
    let mut bytes = stream(&[]);
    bytes.truncate(bytes.len() - 9);
    bytes.extend_from_slice(rest);
    bytes
}

#[test]
fn a_stream_reads_back_in_order_with_its_header() {
    let image = StateImage::read(&sample()[..]).unwrap();
    assert_eq!(*image.header(), header());
    let names: Vec<&str> = image
        .sections()
        .map(|section| section.name.as_str())
        .collect();
    assert_eq!(names, ["machine/cpu", "0000:00:01.0/virtio-rng"]);
}

#[test]
fn a_stream_without_sections_is_whole() {
    let image = StateImage::read(&stream(&[])[..]).unwrap();
    assert!(image.is_empty());
    image.all_taken().unwrap();
}

#[test]
fn the_header_can_be_read_alone() {
    let bytes = sample();
    let reader = StateReader::new(&bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(*reader.header(), header());
    reader.into_image().unwrap_err();
}

#[test]
fn bytes_after_the_end_mark_are_left_unread() {
    let mut bytes = sample();
    bytes.extend_from_slice(b"more");
    let mut input = Cursor::new(bytes);
    StateImage::read(&mut input).unwrap();
    let mut rest = String::new();
    input.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "more");
}

#[test]
fn a_stream_cut_at_any_byte_is_refused_with_what_was_read_and_where() {
    let bytes = sample();
    for end in 0..bytes.len() {
        match StateImage::read(&bytes[..end]).unwrap_err() {
            StreamError::Truncated { what, offset } => {
                assert!(offset <= end as u64, "{what} at {offset} of {end}");
                assert!(!what.is_empty());
            }
            other => panic!("cut at {end}: {other}"),
        }
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    let bytes = sample();
    for position in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1 << bit;
            StateImage::read(&damaged[..]).expect_err(&format!("byte {position}, bit {bit}"));
        }
    }
}

#[test]
fn a_damaged_payload_names_its_section() {
    let mut bytes = sample();
    let at = bytes.windows(9).position(|w| w == b"registers").unwrap();
    bytes[at] ^= 1;
    let text = StateImage::read(&bytes[..]).unwrap_err().to_string();
    assert!(text.contains("section 'machine/cpu'"), "{text}");
}

#[test]
fn other_files_and_other_formats_are_told_apart() {
    let refuse = |damage: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sample();
        damage(&mut bytes);
        StateReader::new(&bytes[..]).map(|_| ()).unwrap_err()
    };
    let error = refuse(&|b| b[..4].copy_from_slice(b"QEVM"));
    assert!(
        error
            .to_string()
            .starts_with("Not a migration stream (bad magic 5145564d"),
        "{error}"
    );
    let error = refuse(&|b| b[8..12].reverse());
    assert!(matches!(
        error,
        StreamError::ByteOrder {
            found: 0x0403_0201,
            ..
        }
    ));
    let error = refuse(&|b| b[12] = 2);
    assert!(
        error
            .to_string()
            .starts_with("Unsupported migration stream version 2"),
        "{error}"
    );
}

#[test]
fn lengths_are_bounded_before_anything_is_allocated() {
    let mut bytes = sample();
    let fingerprint_length = 16 + 1 + header().producer.len();
    bytes[fingerprint_length..fingerprint_length + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = StateReader::new(&bytes[..]).map(|_| ()).unwrap_err();
    assert!(
        matches!(
            error,
            StreamError::TooLarge {
                found: 0xffff_ffff,
                ..
            }
        ),
        "{error}"
    );

    let mut section = vec![b'S', 1, b'x'];
    section.extend_from_slice(&[0; 8]);
    section.extend_from_slice(&((MAX_SECTION + 1) as u32).to_le_bytes());
    let error = StateImage::read(&by_hand(&section)[..]).unwrap_err();
    assert!(matches!(error, StreamError::TooLarge { limit, .. } if limit == MAX_SECTION as u64));
}

#[test]
fn a_section_that_promises_much_and_delivers_nothing_costs_nothing() {
    let mut section = vec![b'S', 1, b'x'];
    section.extend_from_slice(&[0; 8]);
    section.extend_from_slice(&(MAX_SECTION as u32).to_le_bytes());
    section.extend_from_slice(&[0; 4]);
    let error = StateImage::read(&by_hand(&section)[..]).unwrap_err();
    assert!(matches!(error, StreamError::Truncated { .. }));
}

#[test]
fn malformed_sections_are_refused() {
    for rest in [&b"X"[..], &[b'S', 0], &[b'S', 1, 0xff, 0, 0]] {
        let error = StateImage::read(&by_hand(rest)[..]).unwrap_err();
        assert!(matches!(error, StreamError::Malformed { .. }), "{error}");
    }
}

#[test]
fn a_wrong_count_of_sections_is_refused_even_with_a_right_checksum() {
    let mut bytes = by_hand(&[b'E', 1, 0, 0, 0]);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    let error = StateImage::read(&bytes[..]).unwrap_err();
    assert!(matches!(error, StreamError::Malformed { .. }), "{error}");
}

#[test]
fn the_writer_refuses_what_no_reader_takes() {
    let mut bytes = Vec::new();
    let mut writer = SectionWriter::new(&mut bytes, &header()).unwrap();
    writer.put_raw("a", 0, 1, b"").unwrap();
    writer.put_raw("a", 1, 1, b"").unwrap();
    let error = writer.put_raw("a", 1, 1, b"").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Section 'a' instance 1 occurs twice in the state"
    );
    writer.put_raw("", 0, 1, b"").unwrap_err();
    writer
        .put_raw(&"x".repeat(MAX_NAME + 1), 0, 1, b"")
        .unwrap_err();
    writer
        .put_raw("huge", 0, 1, &vec![0; MAX_SECTION + 1])
        .unwrap_err();
    assert_eq!(writer.sections(), 2);
    writer.finish().unwrap();
    assert_eq!(StateImage::read(&bytes[..]).unwrap().len(), 2);

    let long = Header {
        producer: "x".repeat(MAX_PRODUCER + 1),
        ..header()
    };
    assert!(SectionWriter::new(&mut Vec::new(), &long).is_err());
}

#[test]
fn duplicate_sections_in_a_stream_are_refused() {
    let one = stream(&[("a", 7, 1, b"")]);
    let empty = stream(&[]);
    let section = &one[empty.len() - 9..one.len() - 9];
    let bytes = by_hand(&[section, section].concat());
    let error = StateImage::read(&bytes[..]).unwrap_err();
    assert!(
        matches!(error, StreamError::Duplicate { instance: 7, .. }),
        "{error}"
    );
}

#[test]
fn a_section_is_taken_once_and_by_its_instance() {
    let mut image = StateImage::read(&stream(&[("a", 0, 1, b"0"), ("a", 1, 1, b"1")])[..]).unwrap();
    assert_eq!(image.take("a", 1).unwrap().payload, b"1");
    assert!(matches!(
        image.take("a", 1),
        Err(StreamError::Missing { .. })
    ));
    assert!(image.take_if_present("b", 0).is_none());
    assert_eq!(
        image.all_taken().unwrap_err().to_string(),
        "Unknown section or instance 'a' 0. Make sure that your current VM setup matches your \
         saved VM setup, including any hotplugged devices"
    );
    image.take("a", 0).unwrap();
    image.all_taken().unwrap();
}

#[test]
fn versions_outside_of_what_is_loaded_are_refused_in_the_words_of_qemu() {
    let take = |version: u32| checked(&[("d/s", 0, version)], &[Section::new("s", 3, 2)]);
    take(2).unwrap();
    take(3).unwrap();
    let text = take(4).unwrap_err().to_string();
    assert!(
        text.starts_with("d/s: incoming version_id 4 is too new for local version_id 3;"),
        "{text}"
    );
    let text = take(1).unwrap_err().to_string();
    let expected = "d/s: incoming version_id 1 is too old for local minimum version_id 2;";
    assert!(text.starts_with(expected), "{text}");
}

/// Checks an image of these sections against a device `d` that loads those.
fn checked(sections: &[(&str, u32, u32)], loads: &[Section]) -> Result<(), StreamError> {
    let list: Vec<_> = sections
        .iter()
        .map(|&(n, i, v)| (n, i, v, &b""[..]))
        .collect();
    let expected: Vec<_> = loads
        .iter()
        .map(|section| Expected {
            device_path: "d",
            section,
            instances: 1,
        })
        .collect();
    StateImage::read(&stream(&list)[..])
        .unwrap()
        .check(&expected)
}

#[test]
fn a_subsection_may_be_missing_and_has_a_version_of_its_own() {
    let loads = [Section::new("s", 1, 1).subsection("x", 5, 4)];
    checked(&[("d/s", 0, 1)], &loads).unwrap();
    checked(&[("d/s/x", 0, 4), ("d/s", 0, 1)], &loads).unwrap();
    let text = checked(&[("d/s", 0, 1), ("d/s/x", 0, 6)], &loads).unwrap_err();
    assert!(
        text.to_string()
            .starts_with("d/s/x: incoming version_id 6 is too new"),
        "{text}"
    );
    let text = checked(&[("d/s/x", 0, 4)], &loads).unwrap_err();
    assert!(
        text.to_string()
            .starts_with("Section 'd/s' instance 0 is missing"),
        "{text}"
    );
}

#[test]
fn a_subsection_that_nobody_knows_is_refused_with_its_device() {
    let loads = [Section::new("s", 1, 1).subsection("x", 1, 1)];
    let error = checked(&[("d/s", 0, 1), ("d/s/y", 0, 1)], &loads).unwrap_err();
    assert_eq!(
        error.to_string(),
        "VM subsection 's/y' in 'd/s' does not exist; load it with the build that wrote it, or a \
         newer one"
    );
}

#[test]
fn what_nobody_expects_is_refused_before_anything_is_loaded() {
    let loads = [Section::new("s", 1, 1)];
    for unknown in [("d/t", 0, 1), ("d/s", 1, 1), ("e/s", 0, 1), ("d/sx", 0, 1)] {
        let error = checked(&[("d/s", 0, 1), unknown], &loads).unwrap_err();
        assert!(matches!(error, StreamError::Unknown { .. }), "{error}");
    }
}

#[test]
fn a_value_goes_through_the_stream() {
    let mut bytes = Vec::new();
    let mut writer = SectionWriter::new(&mut bytes, &header()).unwrap();
    writer.put("a", 0, 1, &("text".to_owned(), 5u64)).unwrap();
    writer.put("b", 0, 1, &vec![1u8, 2]).unwrap();
    writer.finish().unwrap();
    let mut image = StateImage::read(&bytes[..]).unwrap();
    let value: (String, u64) = image.take("a", 0).unwrap().decode().unwrap();
    assert_eq!(value, ("text".to_owned(), 5));
    assert_eq!(
        image.take("b", 0).unwrap().decode::<Vec<u8>>().unwrap(),
        [1, 2]
    );
}

#[test]
fn a_failing_output_is_reported() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    assert!(matches!(
        SectionWriter::new(&mut Full, &header()),
        Err(StreamError::Write { .. })
    ));
}

proptest! {
    #[test]
    fn any_sections_go_through_the_stream(
        sections in proptest::collection::btree_map(
            ("[a-z0-9:/.-]{1,40}", 0u32..4),
            (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..200)),
            0..20,
        )
    ) {
        let list: Vec<(&str, u32, u32, &[u8])> = sections
            .iter()
            .map(|((name, instance), (version, payload))| {
                (name.as_str(), *instance, *version, &payload[..])
            })
            .collect();
        let mut image = StateImage::read(&stream(&list)[..]).unwrap();
        for (name, instance, version, payload) in list {
            let section = image.take(name, instance).unwrap();
            prop_assert_eq!((section.version, &section.payload[..]), (version, payload));
        }
        image.all_taken().unwrap();
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = StateImage::read(&bytes[..]);
        let _ = StateImage::read(&by_hand(&bytes)[..]);
        let _ = decode::<std::collections::BTreeMap<String, u64>>("fuzz", &bytes);
    }
}
