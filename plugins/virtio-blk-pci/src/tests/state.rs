//! What a damaged or hostile state does: nothing.

use baton_plugin_api::serde::Serialize;
use baton_plugin_api::wire;

use super::*;

#[derive(Serialize)]
#[serde(crate = "baton_plugin_api::serde")]
struct State {
    sectors: u64,
    write_cache: bool,
    in_flight: Vec<InFlight>,
}

#[derive(Serialize)]
#[serde(crate = "baton_plugin_api::serde")]
struct InFlight {
    queue: u16,
    head: u16,
}

pub(super) fn encoded(sectors: u64, write_cache: bool, in_flight: &[(u16, u16)]) -> Vec<u8> {
    wire::encode(&State {
        sectors,
        write_cache,
        in_flight: in_flight
            .iter()
            .map(|&(queue, head)| InFlight { queue, head })
            .collect(),
    })
    .unwrap()
}

#[test]
fn a_state_reads_back() {
    let dir = Dir::new();
    let mut disk = realize(drive(&dir.image(4096)), &[("num-queues", uint(2))]).unwrap();
    let state = encoded(8, false, &[(0, 3), (0, 255), (1, 0)]);
    disk.load(SECTION, 1, &state).unwrap();
    assert_eq!(disk.save(SECTION).unwrap(), state);
    assert_eq!(disk.read_config(32, 1), [0]);
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let mut disk = realize(drive(&image), &[]).unwrap();
    let good = encoded(8, false, &[(0, 3)]);
    disk.load(SECTION, 1, &good).unwrap();
    let name = image.display();
    for (state, why) in [
        (
            encoded(9, true, &[]),
            format!(
                "Image '{name}' has 8 sectors, the guest knows it with 9; give it its size back, \
                 or the right image"
            ),
        ),
        (
            encoded(8, true, &[(0, 256)]),
            "Section 'virtio-blk' has request 256 of queue 0 in flight, this device has 1 queues \
             of 256; say the same num-queues and queue-size as before"
                .into(),
        ),
        (
            encoded(8, true, &[(1, 0)]),
            "Section 'virtio-blk' has request 0 of queue 1 in flight, this device has 1 queues of \
             256; say the same num-queues and queue-size as before"
                .into(),
        ),
        (
            encoded(8, true, &[(0, 7), (0, 1), (0, 7)]),
            "Section 'virtio-blk' has request 7 of queue 0 in flight twice; it is damaged, save \
             it again"
                .into(),
        ),
    ] {
        assert_eq!(disk.load(SECTION, 1, &state).err().unwrap().message, why);
        assert_eq!(disk.save(SECTION).unwrap(), good);
    }
}

#[test]
fn a_state_cut_short_or_with_more_in_it_is_refused() {
    let dir = Dir::new();
    let mut disk = realize(drive(&dir.image(4096)), &[]).unwrap();
    let good = encoded(8, true, &[(0, 3), (0, 4)]);
    for len in 0..good.len() {
        assert!(disk.load(SECTION, 1, &good[..len]).is_err(), "{len} bytes");
    }
    let mut longer = good.clone();
    longer.push(0xc0);
    assert!(disk.load(SECTION, 1, &longer).is_err());
    // One field more in the map.
    let mut unknown = good;
    unknown[0] += 1;
    unknown.extend(wire::encode(&"colour").unwrap());
    unknown.extend(wire::encode(&"red").unwrap());
    let error = disk.load(SECTION, 1, &unknown).err().unwrap();
    assert!(error.message.contains("colour"), "{}", error.message);
    assert!(disk.load("virtio-net", 1, &[]).is_err());
    assert!(disk.save("virtio-net").is_err());
}

#[test]
fn a_request_in_flight_that_the_driver_has_no_room_for_is_refused_at_the_start() {
    let dir = Dir::new();
    let image = dir.image(4096);
    for (head, queue_size) in [(255, 128), (128, 128)] {
        let mut bench = Bench::stopped(drive(&image), &[], FEATURES);
        bench.queues = vec![GuestQueue::new(&bench.ram, 0, queue_size, FIRST_QUEUE)];
        bench
            .disk
            .load(SECTION, 1, &encoded(8, true, &[(0, head)]))
            .unwrap();
        let error = bench
            .disk
            .start(&bench.ram, FEATURES, &mut bench.queues)
            .err()
            .unwrap();
        assert_eq!(
            error.message,
            format!(
                "Request {head} of queue 0 is in flight, which the driver has not enabled or made \
                 smaller; the state is not of this guest"
            )
        );
        // A queue that the driver has not enabled at all.
        assert!(bench.disk.start(&bench.ram, FEATURES, &mut []).is_err());
        // A reset forgets it.
        bench.disk.reset().unwrap();
        bench.start();
        assert_eq!(bench.read(0, 512).data, [0x11; 512]);
        bench.quiesce();
    }
}
