use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use rusqlite::{Connection, params};

pub(super) type Text = Arc<str>;

/// The data structures that the queue's functions work on, in memory, with two books: what the running call changed, so
/// that it can be taken back, and what changed since the last commit, so that only that is written.
#[derive(Default)]
pub(super) struct Data {
    values: HashMap<Text, Value>,
    undo: Vec<(Text, Cell, Old)>,
    dirty: HashSet<(Text, Cell)>,
    /// Messages of the running call; sent when it has been committed.
    pub published: Vec<(Text, Text)>,
    /// What time it is, in ms, where that is simulated.
    pub clock: Option<u64>,
}

enum Value {
    Text(Text),
    Hash(BTreeMap<Text, Text>),
    Set(BTreeSet<Text>),
    Sorted(Sorted),
    List(List),
}

#[derive(Default)]
struct Sorted {
    scores: HashMap<Text, f64>,
    order: BTreeSet<(Score, Text)>,
}

#[derive(Default)]
struct List {
    /// The place of the first item.
    first: i64,
    items: VecDeque<Text>,
}

/// One element: what is written, and what is taken back.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Cell {
    Text,
    Hash(Text),
    Set(Text),
    Sorted(Text),
    List(i64),
}

enum Old {
    Text(Option<Text>),
    Member(bool),
    Score(Option<f64>),
}

#[derive(Clone, Copy, PartialEq)]
struct Score(f64);

impl Eq for Score {}
impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Sorted {
    fn set(&mut self, member: &Text, score: Option<f64>) -> Option<f64> {
        let old = match score {
            Some(score) => self.scores.insert(Arc::clone(member), score),
            None => self.scores.remove(member),
        };
        if old != score {
            if let Some(old) = old {
                self.order.remove(&(Score(old), Arc::clone(member)));
            }
            if let Some(score) = score {
                self.order.insert((Score(score), Arc::clone(member)));
            }
        }
        old
    }
}

impl Data {
    // Elements. Every change goes through one of these five.

    fn put_text(&mut self, key: &Text, value: Option<Text>) -> Option<Text> {
        let old = match value {
            Some(value) => self.values.insert(Arc::clone(key), Value::Text(value)),
            None => self.values.remove(key),
        };
        match old {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn put_hash(&mut self, key: &Text, field: &Text, value: Option<Text>) -> Option<Text> {
        match value {
            Some(value) => {
                let entry = self.values.entry(Arc::clone(key)).or_insert_with(|| Value::Hash(BTreeMap::new()));
                let Value::Hash(hash) = entry else { return None };
                hash.insert(Arc::clone(field), value)
            }
            None => {
                let Some(Value::Hash(hash)) = self.values.get_mut(key) else { return None };
                let old = hash.remove(field);
                if hash.is_empty() {
                    self.values.remove(key);
                }
                old
            }
        }
    }

    fn put_set(&mut self, key: &Text, member: &Text, there: bool) -> bool {
        if there {
            let entry = self.values.entry(Arc::clone(key)).or_insert_with(|| Value::Set(BTreeSet::new()));
            let Value::Set(set) = entry else { return false };
            !set.insert(Arc::clone(member))
        } else {
            let Some(Value::Set(set)) = self.values.get_mut(key) else { return false };
            let old = set.remove(member);
            if set.is_empty() {
                self.values.remove(key);
            }
            old
        }
    }

    fn put_score(&mut self, key: &Text, member: &Text, score: Option<f64>) -> Option<f64> {
        if score.is_some() {
            let entry = self.values.entry(Arc::clone(key)).or_insert_with(|| Value::Sorted(Sorted::default()));
            let Value::Sorted(sorted) = entry else { return None };
            sorted.set(member, score)
        } else {
            let Some(Value::Sorted(sorted)) = self.values.get_mut(key) else { return None };
            let old = sorted.set(member, None);
            if sorted.scores.is_empty() {
                self.values.remove(key);
            }
            old
        }
    }

    /// Only the two ends of a list, and the place after its last item, ever change.
    fn put_item(&mut self, key: &Text, place: i64, value: Option<Text>) -> Option<Text> {
        let entry = self.values.entry(Arc::clone(key)).or_insert_with(|| Value::List(List::default()));
        let Value::List(list) = entry else { return None };
        let end = list.first + i64::try_from(list.items.len()).unwrap_or(0);
        let old = match value {
            Some(value) if list.items.is_empty() => {
                list.first = place;
                list.items.push_back(value);
                None
            }
            Some(value) if place == end => {
                list.items.push_back(value);
                None
            }
            Some(value) if place == list.first - 1 => {
                list.items.push_front(value);
                list.first = place;
                None
            }
            None if place == list.first => {
                list.first += 1;
                list.items.pop_front()
            }
            None if place == end - 1 => list.items.pop_back(),
            _ => None,
        };
        if list.items.is_empty() {
            self.values.remove(key);
        }
        old
    }

    fn note(&mut self, key: &Text, cell: Cell, old: Old) {
        self.dirty.insert((Arc::clone(key), cell.clone()));
        self.undo.push((Arc::clone(key), cell, old));
    }

    // Calls and commits.

    /// What the last call changed is there to stay.
    pub fn keep_call(&mut self) -> Vec<(Text, Text)> {
        self.undo.clear();
        std::mem::take(&mut self.published)
    }

    /// Takes back what the last call changed.
    pub fn undo_call(&mut self) {
        self.published.clear();
        while let Some((key, cell, old)) = self.undo.pop() {
            match (cell, old) {
                (Cell::Text, Old::Text(old)) => drop(self.put_text(&key, old)),
                (Cell::Hash(field), Old::Text(old)) => drop(self.put_hash(&key, &field, old)),
                (Cell::Set(member), Old::Member(old)) => drop(self.put_set(&key, &member, old)),
                (Cell::Sorted(member), Old::Score(old)) => drop(self.put_score(&key, &member, old)),
                (Cell::List(place), Old::Text(old)) => drop(self.put_item(&key, place, old)),
                _ => {}
            }
        }
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Writes what changed since the last time.
    pub fn write(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut put = connection.prepare_cached("INSERT OR REPLACE INTO items VALUES (?1, ?2, ?3, ?4)")?;
        let mut drop = connection.prepare_cached("DELETE FROM items WHERE key = ?1 AND field = ?2")?;
        for (key, cell) in self.dirty.drain() {
            let place;
            let (field, kind): (&str, i64) = match &cell {
                Cell::Text => ("", 0),
                Cell::Hash(field) => (field, 1),
                Cell::Set(member) => (member, 2),
                Cell::Sorted(member) => (member, 3),
                Cell::List(at) => {
                    place = at.to_string();
                    (&place, 4)
                }
            };
            let value = match (self.values.get(&key), &cell) {
                (Some(Value::Text(text)), Cell::Text) => put.execute(params![&*key, field, kind, &**text])?,
                (Some(Value::Hash(hash)), Cell::Hash(name)) if hash.contains_key(name) => {
                    put.execute(params![&*key, field, kind, hash.get(name).map(|text| &**text)])?
                }
                (Some(Value::Set(set)), Cell::Set(member)) if set.contains(member) => {
                    put.execute(params![&*key, field, kind, None::<i64>])?
                }
                (Some(Value::Sorted(sorted)), Cell::Sorted(member)) if sorted.scores.contains_key(member) => {
                    put.execute(params![&*key, field, kind, sorted.scores.get(member)])?
                }
                (Some(Value::List(list)), Cell::List(at)) => {
                    let index = usize::try_from(at - list.first).ok();
                    match index.and_then(|index| list.items.get(index)) {
                        Some(item) => put.execute(params![&*key, field, kind, &**item])?,
                        None => drop.execute(params![&*key, field])?,
                    }
                }
                _ => drop.execute(params![&*key, field])?,
            };
            debug_assert!(value <= 1);
        }
        Ok(())
    }

    pub fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut data = Self::default();
        let mut lists: HashMap<Text, BTreeMap<i64, Text>> = HashMap::new();
        let mut statement = connection.prepare("SELECT key, field, kind, value FROM items")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let key: Text = row.get(0)?;
            let field: Text = row.get(1)?;
            match row.get::<_, i64>(2)? {
                0 => drop(data.put_text(&key, Some(row.get(3)?))),
                1 => drop(data.put_hash(&key, &field, Some(row.get(3)?))),
                2 => drop(data.put_set(&key, &field, true)),
                3 => drop(data.put_score(&key, &field, Some(row.get(3)?))),
                _ => {
                    let items = lists.entry(key).or_default();
                    items.insert(field.parse().unwrap_or(0), row.get(3)?);
                }
            }
        }
        for (key, items) in lists {
            for (place, item) in items {
                data.put_item(&key, place, Some(item));
            }
        }
        Ok(data)
    }

    pub fn keys_with_prefix(&self, prefix: &str) -> Vec<Text> {
        let mut keys: Vec<Text> = self.values.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        keys.sort_unstable();
        keys
    }

    // Commands.

    pub fn text(&self, key: &str) -> Option<&Text> {
        match self.values.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub fn set_text(&mut self, key: &Text, value: Text) {
        let old = self.put_text(key, Some(value));
        self.note(key, Cell::Text, Old::Text(old));
    }

    pub fn exists(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    pub fn delete(&mut self, key: &Text) -> bool {
        let Some(value) = self.values.get(key) else { return false };
        match value {
            Value::Text(_) => {
                let old = self.put_text(key, None);
                self.note(key, Cell::Text, Old::Text(old));
            }
            Value::Hash(hash) => {
                for field in hash.keys().cloned().collect::<Vec<_>>() {
                    self.hash_remove(key, &field);
                }
            }
            Value::Set(set) => {
                for member in set.iter().cloned().collect::<Vec<_>>() {
                    self.set_remove(key, &member);
                }
            }
            Value::Sorted(sorted) => {
                for member in sorted.scores.keys().cloned().collect::<Vec<_>>() {
                    self.sorted_remove(key, &member);
                }
            }
            Value::List(_) => while self.list_pop(key).is_some() {},
        }
        true
    }

    pub fn hash(&self, key: &str) -> Option<&BTreeMap<Text, Text>> {
        match self.values.get(key) {
            Some(Value::Hash(hash)) => Some(hash),
            _ => None,
        }
    }

    /// Whether the field is new.
    pub fn hash_set(&mut self, key: &Text, field: &Text, value: Text) -> bool {
        let old = self.put_hash(key, field, Some(value));
        let new = old.is_none();
        self.note(key, Cell::Hash(Arc::clone(field)), Old::Text(old));
        new
    }

    pub fn hash_remove(&mut self, key: &Text, field: &Text) -> bool {
        let old = self.put_hash(key, field, None);
        let was = old.is_some();
        if was {
            self.note(key, Cell::Hash(Arc::clone(field)), Old::Text(old));
        }
        was
    }

    pub fn set(&self, key: &str) -> Option<&BTreeSet<Text>> {
        match self.values.get(key) {
            Some(Value::Set(set)) => Some(set),
            _ => None,
        }
    }

    pub fn set_add(&mut self, key: &Text, member: &Text) -> bool {
        let was = self.put_set(key, member, true);
        if !was {
            self.note(key, Cell::Set(Arc::clone(member)), Old::Member(false));
        }
        !was
    }

    pub fn set_remove(&mut self, key: &Text, member: &Text) -> bool {
        let was = self.put_set(key, member, false);
        if was {
            self.note(key, Cell::Set(Arc::clone(member)), Old::Member(true));
        }
        was
    }

    pub fn score(&self, key: &str, member: &str) -> Option<f64> {
        match self.values.get(key) {
            Some(Value::Sorted(sorted)) => sorted.scores.get(member).copied(),
            _ => None,
        }
    }

    pub fn sorted_len(&self, key: &str) -> usize {
        match self.values.get(key) {
            Some(Value::Sorted(sorted)) => sorted.scores.len(),
            _ => 0,
        }
    }

    pub fn sorted_add(&mut self, key: &Text, member: &Text, score: f64) -> bool {
        let old = self.put_score(key, member, Some(score));
        if old != Some(score) {
            self.note(key, Cell::Sorted(Arc::clone(member)), Old::Score(old));
        }
        old.is_none()
    }

    pub fn sorted_remove(&mut self, key: &Text, member: &Text) -> bool {
        let old = self.put_score(key, member, None);
        if old.is_some() {
            self.note(key, Cell::Sorted(Arc::clone(member)), Old::Score(old));
        }
        old.is_some()
    }

    /// In order of score, or the other way round.
    pub fn sorted_iter(&self, key: &str, reverse: bool) -> Box<dyn Iterator<Item = (&Text, f64)> + '_> {
        let Some(Value::Sorted(sorted)) = self.values.get(key) else { return Box::new(std::iter::empty()) };
        let items = sorted.order.iter().map(|(score, member)| (member, score.0));
        if reverse { Box::new(items.rev()) } else { Box::new(items) }
    }

    /// Those with a score above `least` (or equal to it, unless `open`) and at most `most`.
    pub fn sorted_between(
        &self,
        key: &str,
        (least, open): (f64, bool),
        most: f64,
    ) -> Box<dyn Iterator<Item = (&Text, f64)> + '_> {
        let Some(Value::Sorted(sorted)) = self.values.get(key) else { return Box::new(std::iter::empty()) };
        let start = Bound::Included((Score(least), Text::from("")));
        let items = sorted.order.range((start, Bound::Unbounded)).map(|(score, member)| (member, score.0));
        Box::new(
            items.skip_while(move |(_, score)| open && *score <= least).take_while(move |(_, score)| *score <= most),
        )
    }

    pub fn list(&self, key: &str) -> Option<&VecDeque<Text>> {
        match self.values.get(key) {
            Some(Value::List(list)) => Some(&list.items),
            _ => None,
        }
    }

    pub fn list_push(&mut self, key: &Text, item: Text) -> usize {
        let (place, length) = match self.values.get(key) {
            Some(Value::List(list)) => (list.first + i64::try_from(list.items.len()).unwrap_or(0), list.items.len()),
            _ => (0, 0),
        };
        self.put_item(key, place, Some(item));
        self.note(key, Cell::List(place), Old::Text(None));
        length + 1
    }

    pub fn list_pop(&mut self, key: &Text) -> Option<Text> {
        let Some(Value::List(list)) = self.values.get(key) else { return None };
        let place = list.first;
        let old = self.put_item(key, place, None)?;
        self.note(key, Cell::List(place), Old::Text(Some(Arc::clone(&old))));
        Some(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(value: &str) -> Text {
        Text::from(value)
    }

    fn dump(data: &Data) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (key, value) in &data.values {
            let shown = match value {
                Value::Text(text) => format!("{text:?}"),
                Value::Hash(hash) => format!("{hash:?}"),
                Value::Set(set) => format!("{set:?}"),
                Value::Sorted(sorted) => {
                    assert_eq!(sorted.order.len(), sorted.scores.len());
                    format!("{:?}", sorted.order.iter().map(|(s, m)| (s.0, m)).collect::<Vec<_>>())
                }
                Value::List(list) => format!("{:?}", list.items),
            };
            all.insert(key.to_string(), shown);
        }
        all
    }

    fn apply(data: &mut Data, operation: (u8, u8, u8)) {
        let (what, field, value) = (operation.0 % 10, text(&(operation.1 % 5).to_string()), operation.2);
        match what {
            0 => data.set_text(&text("t"), text(&value.to_string())),
            1 => drop(data.hash_set(&text("h"), &field, text(&value.to_string()))),
            2 => drop(data.hash_remove(&text("h"), &field)),
            3 => drop(data.set_add(&text("s"), &field)),
            4 => drop(data.set_remove(&text("s"), &field)),
            5 => drop(data.sorted_add(&text("z"), &field, f64::from(value % 7))),
            6 => drop(data.sorted_remove(&text("z"), &field)),
            7 => drop(data.list_push(&text("l"), text(&value.to_string()))),
            8 => drop(data.list_pop(&text("l"))),
            _ => drop(data.delete(&text(["t", "h", "s", "z", "l"][usize::from(value % 5)]))),
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_what_failed_leaves_nothing(
            calls in prop::collection::vec((prop::collection::vec(any::<(u8, u8, u8)>(), 1..12), any::<bool>(), any::<bool>()), 1..20)
        ) {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(super::super::SCHEMA).unwrap();
            let mut data = Data::default();
            for (operations, fails, written) in calls {
                let before = dump(&data);
                for operation in operations {
                    apply(&mut data, operation);
                }
                if fails {
                    data.undo_call();
                    prop_assert_eq!(&dump(&data), &before);
                } else {
                    data.keep_call();
                }
                if written {
                    data.write(&connection).unwrap();
                    prop_assert_eq!(dump(&Data::read(&connection).unwrap()), dump(&data));
                }
            }
        }
    }
}
