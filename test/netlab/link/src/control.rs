//! The control language: one command a line, on standard input.
//!
//! ```text
//! set up delay_us=20000 jitter_us=0 loss=0.01 reorder=0 reorder_by_us=5000 rate=8000000 queue_us=9
//! set down ...           what is not named is as in a good link; rate=0 is none
//! counters               answers  up passed=1 lost=0 queue_full=0 late=0 down passed=...
//! ```

use std::time::Duration;

use crate::impair::Impairment;

/// Which way: `Up` is out of the first of the two namespaces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// From the first to the second.
    Up,
    /// From the second to the first.
    Down,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Makes a direction this bad from the next packet on.
    Set(Way, Impairment),
    /// Tells what happened so far.
    Counters,
}

/// Reads a command; the error names what was not understood.
pub fn parse(line: &str) -> Result<Command, String> {
    let mut words = line.split_whitespace();
    match words.next() {
        Some("counters") => Ok(Command::Counters),
        Some("set") => {
            let way = match words.next() {
                Some("up") => Way::Up,
                Some("down") => Way::Down,
                other => return Err(format!("up or down expected, not {other:?}")),
            };
            words.try_fold(Impairment::default(), with).map(|all| Command::Set(way, all))
        }
        other => Err(format!("set or counters expected, not {other:?}")),
    }
}

fn with(impairment: Impairment, word: &str) -> Result<Impairment, String> {
    let (key, value) = word.split_once('=').ok_or_else(|| format!("key=value expected: {word}"))?;
    Ok(match key {
        "delay_us" => Impairment { delay: micros(word, value)?, ..impairment },
        "jitter_us" => Impairment { jitter: micros(word, value)?, ..impairment },
        "loss" => Impairment { loss: share(word, value)?, ..impairment },
        "reorder" => Impairment { reorder: share(word, value)?, ..impairment },
        "reorder_by_us" => Impairment { reorder_by: micros(word, value)?, ..impairment },
        "rate" => Impairment { rate: Some(number(word, value)?).filter(|r| *r > 0), ..impairment },
        "queue_us" => Impairment { queue: micros(word, value)?, ..impairment },
        _ => return Err(format!("unknown key: {word}")),
    })
}

fn number(word: &str, value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| format!("a number expected: {word}"))
}

fn micros(word: &str, value: &str) -> Result<Duration, String> {
    number(word, value).map(Duration::from_micros)
}

fn share(word: &str, value: &str) -> Result<f64, String> {
    match value.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("a share from 0 to 1 expected: {word}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_good() {
        assert_eq!(parse("set up"), Ok(Command::Set(Way::Up, Impairment::default())));
        let slow = Impairment {
            delay: Duration::from_millis(20),
            loss: 0.01,
            rate: Some(8),
            ..Impairment::default()
        };
        let line = "set down delay_us=20000 loss=0.01 rate=8";
        assert_eq!(parse(line), Ok(Command::Set(Way::Down, slow)));
        assert_eq!(parse("counters\n"), Ok(Command::Counters));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let lines = [
            ("", "None"),
            ("sett up", "sett"),
            ("set left", "left"),
            ("set up loss=2", "loss=2"),
            ("set up loss", "loss"),
            ("set up los=0", "los=0"),
            ("set up rate=-1", "rate=-1"),
        ];
        for (line, wrong) in lines {
            let told = parse(line).unwrap_err();
            assert!(told.contains(wrong), "{told}");
        }
    }
}
