//! `strftime_now`: the date as Python's `datetime.now().strftime(format)` writes it, in UTC and
//! English.

use std::time::{Duration, SystemTime};

use jiff::{
    civil::DateTime,
    fmt::strtime::{BrokenDownTime, Config, PosixCustom},
    tz::TimeZone,
};

/// `time` by `format`, with the flags of glibc (`%-d`). Text that is not a directive is copied
/// unchanged, as in glibc.
pub fn strftime(time: SystemTime, format: &str) -> Result<String, jiff::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let timestamp = jiff::Timestamp::try_from(time)?;
    let date: DateTime = TimeZone::UTC.to_datetime(timestamp);
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    let format = without_own_directives(format, since);
    BrokenDownTime::from(date).to_string_with_config(&config, format)
}

/// Replaces directives: `%f` by microseconds (Python's own), `%s` by seconds, `%z` and `%Z` by
/// nothing, because Python's time has no zone.
fn without_own_directives(format: &str, since: Duration) -> String {
    let mut out = String::with_capacity(format.len());
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('f') => out += &format!("{:06}", since.subsec_micros()),
            Some('s') => out += &since.as_secs().to_string(),
            Some('z' | 'Z') => {}
            Some(other) => out.extend(['%', other]),
            None => out.push_str("%%"),
        }
    }
    out
}
