//! One bounds-checked cursor: every read of a file goes through it, so every length is compared
//! with what is left before anything is done with it.

use crate::{Code, Error, Result};

/// Reads little-endian values from a slice, remembering the offset.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// `E_TRUNCATED` if fewer are left.
    pub fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let left = self.remaining();
        match usize::try_from(n).ok().filter(|n| *n <= left) {
            Some(n) => {
                let s = &self.bytes[self.at..self.at + n];
                self.at += n;
                Ok(s)
            }
            None => Err(Error::new(Code::Truncated, format!("{n} bytes wanted, {left} left"))
                .at(self.at as u64)
                .hint("the file is cut short or damaged; copy it again")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let s = self.take(N as u64)?;
        let mut a = [0; N];
        a.copy_from_slice(s);
        Ok(a)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }
    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// A 32-byte digest.
    pub fn digest(&mut self) -> Result<[u8; 32]> {
        self.array()
    }

    /// A count of things of at least `min_size` bytes each: bounded by what is left and by `cap`,
    /// before anyone allocates or loops. The caller knows where the count was read.
    pub fn count(&self, n: u64, min_size: u64, cap: u64, what: &str) -> Result<usize> {
        let fits = n.checked_mul(min_size).is_some_and(|b| b <= self.remaining() as u64);
        if n > cap {
            return Err(Error::new(Code::Cap, format!("{n} {what}, more than the cap of {cap}")));
        }
        if !fits {
            return Err(Error::new(Code::Truncated, format!("{n} {what} cannot fit in {} bytes", self.remaining())));
        }
        Ok(n as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_reads_past_the_end() {
        let mut c = Cursor::new(&[1, 0, 2]);
        assert_eq!(c.u16().unwrap(), 1);
        assert_eq!(c.u32().unwrap_err().code(), Code::Truncated);
        assert_eq!(c.take(u64::MAX).unwrap_err().offset(), Some(2));
        assert_eq!(c.u8().unwrap(), 2);
        assert_eq!(c.count(u64::MAX, 8, u64::MAX, "things").unwrap_err().code(), Code::Truncated);
    }
}
