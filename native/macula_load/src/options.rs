//! The command line: a scenario, and options that each take a value.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::Error;

/// What was asked for.
#[derive(Debug)]
pub struct Options {
    words: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Options {
    /// Reads `WORD... [--NAME VALUE]...`, where every name is one of `known`.
    ///
    /// # Errors
    /// An option is unknown, or has no value.
    pub fn parse(
        arguments: impl IntoIterator<Item = String>,
        known: &[&str],
    ) -> Result<Options, Error> {
        let mut options = Options { words: Vec::new(), values: BTreeMap::new() };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some(name) = argument.strip_prefix("--") else {
                options.words.push(argument);
                continue;
            };
            if !known.contains(&name) {
                return Err(format!("there is no option --{name}").into());
            }
            let value = arguments.next().ok_or_else(|| format!("--{name} needs a value"))?;
            options.values.insert(name.to_owned(), value);
        }
        Ok(options)
    }

    /// The words before and between the options.
    pub fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    /// The value of an option, if it was given.
    ///
    /// # Errors
    /// It is none of this kind.
    pub fn given<T: FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.values.get(name) else {
            return Ok(None);
        };
        let parsed = value.parse().map_err(|_| format!("--{name} {value}: cannot be read"));
        Ok(Some(parsed?))
    }

    /// The value of an option, or what it is without.
    ///
    /// # Errors
    /// It is none of this kind.
    pub fn or<T: FromStr>(&self, name: &str, without: T) -> Result<T, Error> {
        Ok(self.given(name)?.unwrap_or(without))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        let words = text.split(' ').map(str::to_owned);
        Options::parse(words, &["nodes"]).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_wrong_is_named() {
        let options = parse("attach --nodes 12").unwrap();
        assert_eq!((options.words(), options.or("nodes", 1).unwrap()), (vec!["attach"], 12));
        assert_eq!(options.or("relay", 7).unwrap(), 7);
        assert_eq!(parse("--node 12").unwrap_err(), "there is no option --node");
        assert_eq!(parse("--nodes").unwrap_err(), "--nodes needs a value");
        let wrong = parse("--nodes many").unwrap().or("nodes", 1).unwrap_err();
        assert_eq!(wrong.to_string(), "--nodes many: cannot be read");
    }
}
