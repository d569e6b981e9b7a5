use std::sync::Arc;

use tokio::sync::watch;

/// The one place where the current value of some state can be read, by any number of readers and without asking its
/// owner. Writing never waits for readers; readers see only whole values.
#[derive(Debug)]
pub struct Published<T> {
    sender: watch::Sender<Arc<T>>,
}

impl<T> Clone for Published<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone() }
    }
}

impl<T: Default> Default for Published<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Published<T> {
    pub fn new(value: T) -> Self {
        Self { sender: watch::Sender::new(Arc::new(value)) }
    }

    pub fn get(&self) -> Arc<T> {
        self.sender.borrow().clone()
    }

    pub fn set(&self, value: T) {
        self.sender.send_replace(Arc::new(value));
    }

    /// Publishes the value only when it differs, so that nobody is woken for nothing.
    pub fn set_if_changed(&self, value: T)
    where
        T: PartialEq,
    {
        self.sender.send_if_modified(|current| {
            let changed = **current != value;
            if changed {
                *current = Arc::new(value);
            }
            changed
        });
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.sender.subscribe()
    }
}
