//! Contents in blocks: of contents that change, the blocks that differ are written, and nothing
//! else. What a change costs depends on its size, not on that of the contents.

use cert_chain::VrotId;
use redb::{Error, ReadableTable, Table, TableDefinition, WriteTransaction};
use uuid::Uuid;

use super::batch::Part;

/// All parts of a vRoT, and all blocks of a part, stand side by side.
pub(super) const TABLE: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("blocks");
/// The version of a store whose contents are in one piece each.
pub(super) const WITHOUT: u64 = 1;

/// vRoT, part, number of the block (big-endian).
type Key = [u8; ID_LENGTH + 3];

const ID_LENGTH: usize = 16;
/// As large as a piece in which a backend seals state: several fit into a page of the database.
const BLOCK: usize = 1024;
/// Of version 1: vRoT and part.
const WHOLE: TableDefinition<'_, [u8; ID_LENGTH + 1], &[u8]> = TableDefinition::new("vrots");

/// Every vRoT of which there is a block.
pub(super) fn vrots(table: &impl ReadableTable<Key, &'static [u8]>) -> Result<Vec<VrotId>, Error> {
    let mut vrots = Vec::new();
    for entry in table.iter()? {
        let (id, _, _) = cut(&entry?.0.value());
        let vrot = VrotId::from_uuid(Uuid::from_bytes(id));
        if vrots.last() != Some(&vrot) {
            vrots.push(vrot);
        }
    }
    Ok(vrots)
}

/// The contents of a part. Whether a block is missing, their digest tells.
pub(super) fn read(
    table: &impl ReadableTable<Key, &'static [u8]>,
    vrot: VrotId,
    part: Part,
) -> Result<Option<Vec<u8>>, Error> {
    let mut contents = None;
    for entry in table.range(key(vrot, part, 0)..=key(vrot, part, u16::MAX))? {
        let (_, block) = entry?;
        (contents.get_or_insert_with(Vec::new)).extend_from_slice(block.value());
    }
    Ok(contents)
}

/// Lets a part hold these contents, of which the journal bounds the length.
pub(super) fn write(
    table: &mut Table<'_, Key, &'static [u8]>,
    vrot: VrotId,
    part: Part,
    contents: &[u8],
) -> Result<(), Error> {
    let mut number = 0u16;
    // Contents without a byte are one block, too.
    let empty = contents.is_empty().then_some(contents);
    for block in contents.chunks(BLOCK).chain(empty) {
        let key = key(vrot, part, number);
        let is_there = (table.get(key)?).is_some_and(|stored| stored.value() == block);
        if !is_there {
            table.insert(key, block)?;
        }
        number = number.saturating_add(1);
    }
    remove_from(table, vrot, part, number)
}

/// Removes a part.
pub(super) fn remove(
    table: &mut Table<'_, Key, &'static [u8]>,
    vrot: VrotId,
    part: Part,
) -> Result<(), Error> {
    remove_from(table, vrot, part, 0)
}

/// Makes the table, from that of version 1 where there is one.
pub(super) fn make(transaction: &WriteTransaction) -> Result<(), Error> {
    let mut table = transaction.open_table(TABLE)?;
    let whole = transaction.open_table(WHOLE)?;
    for entry in whole.iter()? {
        let (key, contents) = entry?;
        let [id @ .., part] = key.value();
        let vrot = VrotId::from_uuid(Uuid::from_bytes(id));
        if let Some(part) = Part::ALL.into_iter().find(|known| known.number() == part) {
            write(&mut table, vrot, part, contents.value())?;
        }
    }
    drop(whole);
    transaction.delete_table(WHOLE)?;
    Ok(())
}

fn remove_from(
    table: &mut Table<'_, Key, &'static [u8]>,
    vrot: VrotId,
    part: Part,
    first: u16,
) -> Result<(), Error> {
    let rest = key(vrot, part, first)..=key(vrot, part, u16::MAX);
    if table.range(rest.clone())?.next().is_some() {
        table.retain_in(rest, |_, _| false)?;
    }
    Ok(())
}

fn key(vrot: VrotId, part: Part, number: u16) -> Key {
    let mut key = [0; ID_LENGTH + 3];
    let fields = (vrot.as_bytes().iter())
        .copied()
        .chain([part.number()])
        .chain(number.to_be_bytes());
    for (byte, field) in key.iter_mut().zip(fields) {
        *byte = field;
    }
    key
}

fn cut(key: &Key) -> ([u8; ID_LENGTH], u8, u16) {
    let [id @ .., part, high, low] = *key;
    (id, part, u16::from_be_bytes([high, low]))
}
