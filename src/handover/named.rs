//! Descriptors that a program hands on beside the listening sockets, by name: a UDP socket, a lock file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How many there are at most: one message takes 253 descriptors in all; unix(7), SCM_RIGHTS.
const MOST: usize = 64;
const LONGEST_NAME: usize = 64;

/// Each under a name of its own, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Named(Vec<(String, OwnedFd)>);

impl Named {
    /// Puts a descriptor under a name, in the place of the one that is there.
    ///
    /// # Errors
    ///
    /// The name is none, or there are too many.
    pub(crate) fn put(&mut self, name: &str, descriptor: OwnedFd) -> Result<(), String> {
        if !is_name(name) {
            return Err(format!(
                "a name has 1 to {LONGEST_NAME} characters, which are letters, digits, '.', '_' and '-'"
            ));
        }
        self.take(name);
        if self.0.len() == MOST {
            return Err(format!("there are {MOST}, and no more are handed on"));
        }
        self.0.push((name.to_owned(), descriptor));
        Ok(())
    }

    /// Takes the descriptor under this name.
    pub(crate) fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.0.iter().position(|(present, _)| present == name)?;
        Some(self.0.remove(index).1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.0.iter().map(|(name, descriptor)| (&**name, descriptor.as_fd()))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Whether a text is a name, which is one word on a link.
pub(crate) fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_name_has_one_descriptor_and_is_taken_once() {
        let mut named = Named::default();
        let descriptor = || OwnedFd::from(io::pipe().unwrap().0);
        for text in ["", "a b", "a\nb", "\u{e4}", "a/b", &"n".repeat(65)] {
            assert!(named.put(text, descriptor()).unwrap_err().starts_with("a name has 1 to 64 "), "{text}");
        }
        let names = (1..=MOST).map(|length| "aZ9._-x".repeat(10)[..length].to_owned());
        names.for_each(|name| named.put(&name, descriptor()).unwrap());
        assert_eq!(named.put("b", descriptor()).unwrap_err(), "there are 64, and no more are handed on");
        named.put("a", descriptor()).unwrap();
        assert_eq!(named.len(), MOST);
        assert!(named.take("a").is_some() && named.take("a").is_none());
        assert_eq!(named.iter().map(|(name, _)| name).next(), Some("aZ"));
    }
}
