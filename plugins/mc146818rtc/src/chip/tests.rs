//! The chip against a clock of the test's.

use super::*;

const HOUR: i128 = 3600 * SECOND;

fn time(text: &str) -> i128 {
    i128::from(Date::parse(text).unwrap().to_seconds()) * SECOND
}

/// A chip and the host's clock. The guest's time is a day and a third of a second ahead.
struct Bench {
    chip: Chip,
    now: i128,
}

impl Bench {
    fn at(text: &str) -> Self {
        let ahead = 24 * HOUR + SECOND / 3;
        let now = time(text) - ahead;
        Self {
            chip: Chip::new(0, now, now + ahead),
            now,
        }
    }

    fn read(&mut self, register: usize) -> u8 {
        self.chip.select(register as u8);
        self.chip.read(self.now)
    }

    fn write(&mut self, register: usize, value: u8) {
        self.chip.select(register as u8);
        self.chip.write(value, self.now);
    }

    /// Year with century, month, day, hour, minute, second, as they are in the registers.
    fn registers(&mut self) -> [u8; 7] {
        [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS].map(|r| self.read(r))
    }

    fn set_registers(&mut self, values: [u8; 7]) {
        let all = [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS];
        for (register, value) in all.into_iter().zip(values) {
            self.write(register, value);
        }
    }

    /// Goes on to the next interrupt the chip announces; how long that took.
    fn next_interrupt(&mut self) -> i128 {
        let due = self.chip.next_interrupt(self.now).unwrap();
        self.chip.settle(due - 1);
        assert!(!self.chip.take_interrupt(), "an interrupt before its time");
        self.chip.settle(due);
        assert!(self.chip.take_interrupt(), "no interrupt at its time");
        due - std::mem::replace(&mut self.now, due)
    }
}

#[test]
fn the_time_is_bcd_of_24_hours_after_power_on_and_goes_on() {
    let mut bench = Bench::at("1999-12-31T23:59:58");
    assert_eq!(
        bench.registers(),
        [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58]
    );
    bench.now += 2 * SECOND;
    assert_eq!(
        bench.registers(),
        [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]
    );
    assert_eq!(bench.read(WEEKDAY), 7);
    assert_eq!(bench.read(D), D_VALID);
}

#[test]
fn binary_and_12_hours_are_as_register_b_says() {
    let mut bench = Bench::at("2024-02-29T23:59:59");
    bench.write(B, 0x04);
    assert_eq!(bench.registers(), [20, 24, 2, 29, 11 | 0x80, 59, 59]);
    bench.now += SECOND;
    assert_eq!(bench.registers(), [20, 24, 3, 1, 12, 0, 0]);
}

#[test]
fn the_time_stands_still_while_it_is_set_and_goes_on_from_there() {
    let mut bench = Bench::at("2024-01-01T00:00:07");
    bench.write(B, 0x82);
    bench.now += 5 * SECOND;
    assert_eq!(bench.read(SECONDS), 0x07);
    let date = [0x20, 0x31, 0x08, 0x15, 0x13, 0x14, 0x15];
    bench.set_registers(date);
    bench.now += 5 * SECOND;
    assert_eq!(bench.registers(), date);
    bench.write(B, 0x02);
    bench.now += SECOND;
    assert_eq!(bench.read(SECONDS), 0x16);
}

#[test]
fn setting_the_time_does_not_move_the_seconds_edge() {
    let mut bench = Bench::at("2024-01-01");
    bench.now += 600_000_000;
    bench.write(B, 0x82);
    bench.write(SECONDS, 0x30);
    bench.write(B, 0x02);
    bench.now += 399_999_999;
    assert_eq!(bench.read(SECONDS), 0x30);
    bench.now += 1;
    assert_eq!(bench.read(SECONDS), 0x31);
}

/// Linux sets the time like this, and counts on the half second.
#[test]
fn the_first_update_after_the_divider_is_released_comes_half_a_second_later() {
    let mut bench = Bench::at("2024-01-01");
    bench.now += 123_456_789;
    bench.write(B, 0x82);
    bench.write(A, 0x76);
    bench.set_registers([0x20, 0x25, 0x06, 0x30, 0x12, 0x00, 0x59]);
    bench.write(B, 0x02);
    bench.now += 7 * SECOND;
    assert_eq!(bench.read(SECONDS), 0x59);
    bench.write(A, 0x26);
    bench.now += SECOND / 2 - 1;
    assert_eq!(bench.read(SECONDS), 0x59);
    bench.now += 1;
    assert_eq!(bench.registers()[3..], [0x30, 0x12, 0x01, 0x00]);
}

#[test]
fn a_time_register_may_be_written_without_stopping() {
    let mut bench = Bench::at("2024-02-29T10:20:30");
    bench.write(YEAR, 0x23);
    assert_eq!(
        bench.registers(),
        [0x20, 0x23, 0x03, 0x01, 0x10, 0x20, 0x30]
    );
}

#[test]
fn the_update_flag_is_up_for_the_last_244_microseconds_of_a_second() {
    let mut bench = Bench::at("2024-01-01");
    for (after, up) in [
        (0, false),
        (999_755_999, false),
        (999_756_000, true),
        (999_999_999, true),
        (SECOND, false),
    ] {
        let mut bench = Bench {
            chip: bench.chip.clone(),
            now: bench.now + after,
        };
        assert_eq!(bench.read(A) & A_UPDATING != 0, up, "{after} ns");
    }
    bench.write(B, 0x82);
    bench.now += 999_800_000;
    assert_eq!(bench.read(A) & A_UPDATING, 0);
    bench.write(A, 0xa6);
    assert_eq!(bench.read(A), 0x26);
}

#[test]
fn an_idle_guest_needs_no_timer_and_still_finds_its_flags() {
    let mut bench = Bench::at("2024-01-01");
    assert_eq!(bench.chip.next_interrupt(bench.now), None);
    bench.now += 3 * SECOND;
    assert_eq!(bench.read(C), PERIODIC | UPDATE);
    assert_eq!(bench.read(C), 0);
    assert!(!bench.chip.take_interrupt());
}

#[test]
fn update_interrupts_come_each_second_once_acknowledged() {
    let mut bench = Bench::at("2024-01-01");
    bench.now += 250_000_000;
    bench.write(B, 0x12);
    assert_eq!(bench.next_interrupt(), 750_000_000);
    assert_eq!(bench.chip.next_interrupt(bench.now), None);
    assert_eq!(bench.read(C) & !PERIODIC, C_REQUEST | UPDATE);
    assert_eq!(bench.next_interrupt(), SECOND);
    bench.write(B, 0x92);
    assert_eq!(bench.read(B), 0x82);
}

#[test]
fn periodic_interrupts_come_at_their_rate() {
    for (rate, per_second) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let mut bench = Bench::at("2024-01-01");
        bench.write(A, 0x20 | rate);
        bench.read(C);
        bench.write(B, 0x42);
        let mut took = 0;
        for _ in 0..per_second {
            took += bench.next_interrupt();
            assert_eq!(bench.read(C) & PERIODIC, PERIODIC);
        }
        assert_eq!(took, SECOND, "rate {rate}");
    }
    let mut bench = Bench::at("2024-01-01");
    bench.write(B, 0x42);
    for no_rate in [0x20, 0x76] {
        bench.write(A, no_rate);
        bench.read(C);
        assert_eq!(bench.chip.next_interrupt(bench.now), None);
        bench.now += SECOND;
        assert_eq!(bench.read(C) & PERIODIC, 0);
    }
}

#[test]
fn ticks_nobody_took_are_one_tick() {
    let mut bench = Bench::at("2024-01-01");
    bench.write(B, 0x42);
    bench.now += 10 * SECOND;
    bench.chip.settle(bench.now);
    assert!(bench.chip.take_interrupt());
    bench.chip.settle(bench.now + SECOND);
    assert!(!bench.chip.take_interrupt());
}

#[test]
fn an_alarm_interrupts_at_its_time_in_any_format() {
    for (b, alarm) in [
        (0x22, [0x13, 0x30, 0x05]),
        (0x26, [13, 30, 5]),
        (0x20, [0x81, 0x30, 0x05]),
        (0x24, [0x81, 30, 5]),
    ] {
        let mut bench = Bench::at("2024-05-05T13:30:06");
        let registers = [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM];
        for (register, value) in registers.into_iter().zip(alarm) {
            bench.write(register, value);
        }
        bench.write(B, b);
        assert_eq!(bench.next_interrupt(), 24 * HOUR - SECOND);
        assert_eq!(bench.read(C) & !PERIODIC, C_REQUEST | ALARM | UPDATE);
    }
}

#[test]
fn an_alarm_that_does_not_care_comes_again_and_again() {
    let mut bench = Bench::at("2024-05-05T13:30:06");
    bench.write(HOURS_ALARM, 0xff);
    bench.write(MINUTES_ALARM, 0xc0);
    bench.write(SECONDS_ALARM, 0x10);
    bench.write(B, 0x22);
    assert_eq!(bench.next_interrupt(), 4 * SECOND);
    bench.read(C);
    assert_eq!(bench.next_interrupt(), 60 * SECOND);
}

#[test]
fn enabling_an_interrupt_whose_flag_is_up_raises_it_at_once() {
    let mut bench = Bench::at("2024-01-01");
    bench.now += SECOND;
    bench.write(B, 0x12);
    assert!(bench.chip.take_interrupt());
    bench.write(B, 0x02);
    assert_eq!(bench.read(C) & C_REQUEST, 0);
}

#[test]
fn a_clock_that_is_set_back_neither_interrupts_nor_stops() {
    let mut bench = Bench::at("2024-01-01");
    bench.write(B, 0x12);
    bench.now -= 10 * HOUR;
    bench.chip.settle(bench.now);
    assert!(!bench.chip.take_interrupt());
    assert_eq!(bench.registers()[3..], [0x31, 0x14, 0x00, 0x00]);
    assert_eq!(bench.next_interrupt(), SECOND);
}

#[test]
fn memory_reads_back_and_the_nmi_mask_is_not_part_of_the_index() {
    let mut bench = Bench::at("2024-01-01");
    for register in (0x0e..CMOS).filter(|r| *r != CENTURY) {
        bench.write(register, register as u8 ^ 0x5a);
    }
    for register in (0x0e..CMOS).filter(|r| *r != CENTURY) {
        assert_eq!(bench.read(register | 0x80), register as u8 ^ 0x5a);
    }
    bench.write(D, 0);
    assert_eq!(bench.read(D), D_VALID);
}

#[test]
fn a_reset_ends_interrupts_and_keeps_time_and_memory() {
    let mut bench = Bench::at("2024-01-01T01:02:03");
    bench.write(0x40, 7);
    bench.write(B, 0x7e);
    bench.now += SECOND;
    bench.chip.settle(bench.now);
    bench.chip.reset();
    assert!(!bench.chip.take_interrupt());
    assert_eq!(bench.chip.next_interrupt(bench.now), None);
    assert_eq!([B, C, SECONDS, 0x40].map(|r| bench.read(r)), [6, 0, 4, 7]);
}

#[test]
fn the_base_year_is_what_year_0_stands_for() {
    let now = time("2024-01-01");
    let mut chip = Chip::new(1980, now, now);
    chip.select(YEAR as u8);
    assert_eq!(chip.read(now), 0x44);
    chip.write(0x45, now);
    assert_eq!(seconds(now + chip.offset), seconds(time("2025-01-01")));
}

#[test]
fn the_last_year_a_guest_can_set_fits() {
    let mut bench = Bench::at("2024-01-01");
    bench.write(B, 0x86);
    bench.set_registers([0xff; 7]);
    bench.write(B, 0x26);
    bench.now += SECOND;
    bench.chip.settle(bench.now);
    assert!(bench.chip.next_interrupt(bench.now).is_some());
}
