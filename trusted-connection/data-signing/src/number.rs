//! Numbers that nobody else gets, from a counter in a TPM (`TPM_NT_COUNTER`).
//!
//! The TPM increments the counter before anything is signed with the number, and has that in its state before
//! it answers. So a crash at any point leaves a gap and never a number twice. A counter that was removed and
//! made anew, by whoever has the owner's authorization, goes on above the highest value that any counter of
//! this TPM ever had (TPM 2.0 Part 1, NV counters; Part 3, `TPM2_NV_Increment`).

use cert_chain::layout::DATA_COUNTER;

/// A counter in a TPM, which others increment as well.
pub trait Counter {
    /// Why a command fails.
    type Error;

    /// Increments it.
    fn increment(&mut self) -> Result<(), Self::Error>;

    /// Its value, once it has one: it was incremented since it was made.
    fn read(&mut self) -> Result<Option<u64>, Self::Error>;
}

/// What is wrong with a counter that the TPM does have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CounterProblem {
    /// Something else is there.
    #[error(
        "NV index 0x{DATA_COUNTER:08x} is no counter that keeps every value: something else uses it; look at \
         it with `tpm2_nvreadpublic`"
    )]
    NoCounter,
    /// Others are always in between.
    #[error("the counter 0x{DATA_COUNTER:08x} is incremented by others all the time")]
    Contended,
}

/// Others that sign at the same time are in between now and then.
const ATTEMPTS: usize = 200;

/// A number that nobody else gets. Increment and read are two commands, and others are in between: if the
/// counter rose by one between two of our reads, that one was ours, and so is the number.
pub fn next<C: Counter>(counter: &mut C) -> Result<u64, C::Error>
where
    C::Error: From<CounterProblem>,
{
    let mut before = counter.read()?;
    for _ in 0..ATTEMPTS {
        counter.increment()?;
        // It has a value from here on.
        let after = counter.read()?.ok_or(CounterProblem::NoCounter)?;
        if before.and_then(|before| before.checked_add(1)) == Some(after) {
            return Ok(after);
        }
        before = Some(after);
    }
    Err(CounterProblem::Contended.into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::cell::RefCell;

    use super::*;

    /// Who incremented a counter, from its first value on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum By {
        Us,
        Others,
    }

    /// What counters of this TPM had before.
    const HIGHEST: u64 = 40;

    /// A signer's view of a counter, with what others do in between its commands.
    struct Shared<'a> {
        steps: &'a RefCell<Vec<By>>,
        /// How often others increment before each of the next commands; then they rest.
        others: Vec<usize>,
    }

    impl Shared<'_> {
        fn meanwhile(&mut self) {
            let others = self.others.pop().unwrap_or(0);
            let steps = std::iter::repeat_n(By::Others, others);
            self.steps.borrow_mut().extend(steps);
        }
    }

    impl Counter for Shared<'_> {
        type Error = CounterProblem;

        fn increment(&mut self) -> Result<(), CounterProblem> {
            self.meanwhile();
            self.steps.borrow_mut().push(By::Us);
            Ok(())
        }

        fn read(&mut self) -> Result<Option<u64>, CounterProblem> {
            self.meanwhile();
            let steps = u64::try_from(self.steps.borrow().len()).unwrap();
            Ok((steps > 0).then_some(HIGHEST + steps))
        }
    }

    fn who_incremented_to(number: u64, steps: &RefCell<Vec<By>>) -> By {
        let step = usize::try_from(number - HIGHEST - 1).unwrap();
        steps.borrow().get(step).copied().unwrap()
    }

    #[test]
    fn a_number_is_taken_by_who_alone_incremented_to_it() {
        // Whatever others do before each of the first six commands.
        for begun in 0..2 {
            for pattern in 0..729usize {
                let steps = RefCell::new(vec![By::Others; begun]);
                let others = (0..6).map(|place| pattern / 3usize.pow(place) % 3);
                let mut counter = Shared {
                    steps: &steps,
                    others: others.collect(),
                };
                let number = next(&mut counter).unwrap();
                let by = who_incremented_to(number, &steps);
                assert_eq!(by, By::Us, "{number} of {steps:?}");
            }
        }
    }

    #[test]
    fn a_counter_without_a_value_begins_with_a_gap_and_one_that_is_never_left_alone_gives_no_number()
     {
        let steps = RefCell::new(Vec::new());
        let mut counter = Shared {
            steps: &steps,
            others: Vec::new(),
        };
        assert_eq!(next(&mut counter), Ok(HIGHEST + 2));
        counter.others = vec![1; 2 * ATTEMPTS + 2];
        assert_eq!(next(&mut counter), Err(CounterProblem::Contended));
    }
}
