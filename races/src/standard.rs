//! The standard library with shuttle's threads, locks, atomics and channels.

pub use std::*;

pub mod hint {
    pub use shuttle::hint::spin_loop;
}

pub mod thread {
    pub use shuttle::thread::*;
}

pub mod sync {
    use std::ops::Deref;
    pub use std::sync::{Arc as StdArc, PoisonError};

    pub use shuttle::sync::{Condvar, Mutex, MutexGuard, mpsc};

    pub mod atomic {
        pub use shuttle::sync::atomic::*;
    }

    /// Another thread may run here.
    fn step() {
        shuttle::sync::atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
    }

    /// [`std::sync::Arc`], at each change of whose count another thread may run.
    #[derive(Debug)]
    pub struct Arc<T>(StdArc<T>);

    impl<T> Arc<T> {
        pub fn new(value: T) -> Self {
            Self(StdArc::new(value))
        }

        pub fn strong_count(this: &Self) -> usize {
            let count = StdArc::strong_count(&this.0);
            step();
            count
        }
    }

    impl<T> Clone for Arc<T> {
        fn clone(&self) -> Self {
            step();
            Self(self.0.clone())
        }
    }

    impl<T> Drop for Arc<T> {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                step();
            }
        }
    }

    impl<T> Deref for Arc<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    /// [`std::sync::OnceLock`], whose value is set and seen at one instant.
    pub struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        lock: Mutex<()>,
        set: Condvar,
    }

    impl<T> OnceLock<T> {
        pub fn new() -> Self {
            let value = std::sync::OnceLock::new();
            Self { value, lock: Mutex::new(()), set: Condvar::new() }
        }

        pub fn get(&self) -> Option<&T> {
            step();
            self.value.get()
        }

        pub fn set(&self, value: T) -> Result<(), T> {
            let _guard = self.lock.lock().unwrap();
            self.value.set(value)?;
            self.set.notify_all();
            Ok(())
        }

        pub fn wait(&self) -> &T {
            let mut guard = self.lock.lock().unwrap();
            loop {
                match self.value.get() {
                    Some(value) => return value,
                    None => guard = self.set.wait(guard).unwrap(),
                }
            }
        }
    }
}
