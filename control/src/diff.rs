//! Differences of maps that share what is the same.

use imbl::ordmap::DiffItem;

/// What was there before, and what is there now.
pub(crate) fn sides<'a, K, V>(change: DiffItem<'a, 'a, K, V>) -> (Option<&'a V>, Option<&'a V>) {
    match change {
        DiffItem::Add(_, new) => (None, Some(new)),
        DiffItem::Remove(_, old) => (Some(old), None),
        DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
    }
}
