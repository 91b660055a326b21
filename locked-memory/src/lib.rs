//! Memory for keys: never on a disk, and zeroed at its end.
//!
//! Each key lies in a mapping of its own, which is locked (not swapped out), left out of core
//! files, and overwritten before it is given back. Whatever type is kept in it is zeroed as well,
//! also one that would not do so itself, such as a cipher with its key schedule.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc::c_void;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::{Zeroize, Zeroizing};

/// A value in locked memory.
pub struct Locked<T> {
    at: NonNull<c_void>,
    value: PhantomData<T>,
}

/// Why there is no locked memory.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a key cannot be kept in locked memory (is the limit RLIMIT_MEMLOCK too low?)")]
pub struct NotLocked(#[source] Errno);

/// The kernel maps whole pages; this is what we use of one at most.
const SIZE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// More than what calls of a cipher leave behind on the stack.
const STACK: usize = 16 * 1024;

#[expect(unsafe_code, reason = "a mapping is raw memory")]
impl<T> Locked<T> {
    /// Keeps what `make` makes. What that leaves behind on the stack is zeroed, too.
    pub fn new(make: impl FnOnce() -> T) -> Result<Self, NotLocked> {
        match Self::try_new(|| Ok::<T, std::convert::Infallible>(make()))? {
            Ok(locked) => Ok(locked),
        }
    }

    /// The same, if `make` makes anything.
    pub fn try_new<E>(make: impl FnOnce() -> Result<T, E>) -> Result<Result<Self, E>, NotLocked> {
        const { assert!(size_of::<T>() <= SIZE.get() && align_of::<T>() <= SIZE.get()) };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping, of which nobody else knows.
        let at = unsafe { mmap_anonymous(None, SIZE, protection, MapFlags::MAP_PRIVATE) };
        let at = at.map_err(NotLocked)?;
        // SAFETY: the whole of the mapping above; both calls leave its contents alone.
        let locked = unsafe {
            mlock(at, SIZE.get()).and_then(|()| madvise(at, SIZE.get(), MmapAdvise::MADV_DONTDUMP))
        };
        if let Err(error) = locked {
            // SAFETY: the mapping above, which nothing refers to.
            unsafe { munmap(at, SIZE.get()) }.map_err(NotLocked)?;
            return Err(NotLocked(error));
        }
        let made = fill(at.cast(), make);
        wipe_stack();
        if let Err(error) = made {
            // SAFETY: as above: `make` made nothing.
            unsafe { munmap(at, SIZE.get()) }.map_err(NotLocked)?;
            return Ok(Err(error));
        }
        Ok(Ok(Self {
            at,
            value: PhantomData,
        }))
    }
}

/// On a stack frame of its own, which is wiped afterwards.
#[expect(unsafe_code, reason = "a mapping is raw memory")]
#[inline(never)]
fn fill<T, E>(at: NonNull<T>, make: impl FnOnce() -> Result<T, E>) -> Result<(), E> {
    let value = make()?;
    // SAFETY: the mapping is writable, large enough and aligned, and holds no value yet.
    unsafe { at.write(value) };
    Ok(())
}

/// Overwrites what calls that have returned left behind on the stack.
#[inline(never)]
pub fn wipe_stack() {
    let mut left_behind = [0u8; STACK];
    left_behind.zeroize();
}

/// Adds bytes. Where that takes a larger buffer, the old one is zeroed.
pub fn append(to: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    let needed = to.len() + bytes.len();
    if needed > to.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(2 * to.capacity())));
        larger.extend_from_slice(to);
        *to = larger;
    }
    to.extend_from_slice(bytes);
}

impl<T> Deref for Locked<T> {
    type Target = T;

    #[expect(unsafe_code, reason = "a mapping is raw memory")]
    fn deref(&self) -> &T {
        // SAFETY: `new` put a value there, and it stays until `drop`.
        unsafe { self.at.cast().as_ref() }
    }
}

impl<T> DerefMut for Locked<T> {
    #[expect(unsafe_code, reason = "a mapping is raw memory")]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; `self` is borrowed exclusively, and alone knows the mapping.
        unsafe { self.at.cast().as_mut() }
    }
}

#[expect(unsafe_code, reason = "a mapping is raw memory")]
impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: the value is dropped once, here; then its bytes are nobody's, and all of the
        // mapping is initialised (the kernel gave it zeroed).
        unsafe {
            self.at.cast::<T>().drop_in_place();
            std::slice::from_raw_parts_mut(self.at.cast::<u8>().as_ptr(), SIZE.get()).zeroize();
            // It fails for addresses alone that are no mapping. The key is gone by then.
            let _ = munmap(self.at, SIZE.get());
        }
    }
}

// SAFETY: the mapping belongs to this value alone, like the heap memory of a `Box<T>`.
#[expect(unsafe_code, reason = "a raw pointer is neither by itself")]
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a raw pointer is neither by itself")]
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked")
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::fs::{self, File};
    use std::hint::black_box;
    use std::io::{IoSlice, Read};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// What a key consists of here.
    const MARK: u8 = 0xa7;

    /// The flags of the mapping at an address (proc(5), `smaps`).
    fn flags(address: usize) -> String {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split_whitespace().next().unwrap_or_default();
            if let Some((start, end)) = range.split_once('-') {
                let number = |text| usize::from_str_radix(text, 16);
                if let (Ok(start), Ok(end)) = (number(start), number(end)) {
                    inside = (start..end).contains(&address);
                }
            } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return format!("{flags} ");
            }
        }
        String::new()
    }

    #[test]
    fn a_key_is_locked_and_in_no_core_file() {
        let key = Locked::new(|| [7u8; 32]).unwrap();
        let flags = flags(std::ptr::from_ref(&*key).addr());
        assert!(flags.contains(" lo ") && flags.contains(" dd "), "{flags}");
        assert_eq!(*key, [7; 32]);
    }

    #[test]
    fn what_is_kept_is_dropped() {
        struct Noted<'n>(&'n std::cell::Cell<u32>);
        impl Drop for Noted<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let drops = std::cell::Cell::new(0);
        let kept = Locked::new(|| Noted(&drops)).unwrap();
        assert_eq!(drops.get(), 0);
        drop(kept);
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn a_key_is_overwritten_before_its_memory_is_given_back() {
        let key = Locked::new(|| [MARK; 32]).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let mut read = File::from(read);
        // The pipe holds the page itself, not a copy (vmsplice(2)), and keeps it beyond the mapping.
        for _ in ["now", "at its end"] {
            let page = IoSlice::new(&*key);
            let page = std::ptr::from_ref(&page).cast::<nix::libc::iovec>();
            #[expect(
                unsafe_code,
                reason = "nix has it in a feature that nothing else needs"
            )]
            // SAFETY: one slice, in the form of an `iovec`, of memory that is mapped.
            let given = unsafe { nix::libc::vmsplice(write.as_raw_fd(), page, 1, 0) };
            assert_eq!(given, 32);
        }
        let mut held = [0; 32];
        read.read_exact(&mut held).unwrap();
        assert_eq!(held, [MARK; 32]);
        drop(key);
        read.read_exact(&mut held).unwrap();
        assert_eq!(held, [0; 32]);
    }

    /// As a cipher leaves what it made of a key.
    #[inline(never)]
    fn leave_a_mark_on_the_stack() {
        black_box([MARK; STACK / 2]);
    }

    #[inline(never)]
    fn is_mark_on_the_stack(memory: &File) -> bool {
        let here = 0u8;
        let mut below = vec![0; STACK];
        let start = std::ptr::from_ref(&here).addr() - STACK;
        memory
            .read_exact_at(&mut below, start.try_into().unwrap())
            .unwrap();
        below.windows(512).any(|bytes| bytes == [MARK; 512])
    }

    #[test]
    fn what_making_a_key_leaves_on_the_stack_is_overwritten() {
        let memory = File::open("/proc/self/mem").unwrap();
        leave_a_mark_on_the_stack();
        assert!(is_mark_on_the_stack(&memory));
        let _key = Locked::new(leave_a_mark_on_the_stack).unwrap();
        assert!(!is_mark_on_the_stack(&memory));
    }
}
