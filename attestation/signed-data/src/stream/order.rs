//! The order of readings within a batch, by the places that they say they have.

use crate::stream::reading::Readings;
use crate::stream::refusal::StreamRefusal;
use crate::stream::statement::BatchStatement;

/// Whether each reading of the batch is there once and in its place. What is wrong is told by the numbers of
/// the readings. Who changes readings can change what they say of their places as well: the tree shows that.
pub(super) fn check(statement: &BatchStatement, readings: &Readings) -> Result<(), StreamRefusal> {
    let number = |place: u64| statement.first.saturating_add(place);
    // A batch that can be read has 65,536 readings at most.
    let mut seen = vec![false; usize::try_from(statement.count).unwrap_or_default()];
    for place in readings.places() {
        let place_seen = usize::try_from(place).ok();
        match place_seen.and_then(|place| seen.get_mut(place)) {
            None => return Err(StreamRefusal::ReadingAdded(number(place))),
            Some(true) => return Err(StreamRefusal::ReadingReplayed(number(place))),
            Some(seen) => *seen = true,
        }
    }
    if let Some(from) = seen.iter().position(|seen| !seen) {
        let missing = seen.iter().skip(from).take_while(|seen| !**seen).count();
        let from = number(from as u64);
        return Err(StreamRefusal::ReadingsDropped {
            from,
            to: from.saturating_add(missing as u64).saturating_sub(1),
        });
    }
    let mut pairs = (0..).zip(readings.places());
    match pairs.find(|(expected, place)| expected != place) {
        Some((_, place)) => Err(StreamRefusal::ReadingsReordered(number(place))),
        None => Ok(()),
    }
}
