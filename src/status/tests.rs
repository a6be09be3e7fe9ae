use std::time::Duration;

use super::*;

#[test]
fn times_are_written_in_the_gregorian_calendar() {
    let at = |seconds: u64| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (951_868_800, "2000-03-01T00:00:00Z"),
        (1_709_251_199, "2024-02-29T23:59:59Z"),
        (1_795_314_959, "2026-11-22T02:35:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
    ] {
        assert_eq!(at(seconds), text);
    }
    assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31T23:59:59Z");
}
