//! Threads: one for each connection, kept for a while for the next one.
//!
//! A thread is had before a connection is accepted. When the system refuses one, the connection waits in
//! the kernel's queue, from where another process of a handover may take it, instead of being lost.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a thread waits for its next job before it ends.
const KEPT_FOR: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The threads that wait for a job. The last one to become idle is the first to be taken, so that those
/// that are too many end.
#[derive(Default)]
pub(crate) struct Workers {
    idle: Arc<Mutex<Vec<Worker>>>,
    next: AtomicU64,
}

/// A thread without a job.
struct Worker {
    id: u64,
    job: Sender<Job>,
}

/// A thread that waits for a job from whoever has this. It goes back to the others when it gets none.
pub(crate) struct Reserved {
    worker: Option<Worker>,
    idle: Arc<Mutex<Vec<Worker>>>,
}

impl Workers {
    /// A thread that is idle, or a new one.
    ///
    /// # Errors
    ///
    /// The system refuses a new thread: `EAGAIN`, for a limit or for lack of memory; see pthread_create(3).
    pub(crate) fn reserve(&self) -> io::Result<Reserved> {
        let kept = lock(&self.idle).pop();
        let worker = match kept {
            Some(worker) => worker,
            None => self.start()?,
        };
        Ok(Reserved { worker: Some(worker), idle: Arc::clone(&self.idle) })
    }

    fn start(&self) -> io::Result<Worker> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (job, jobs) = mpsc::channel();
        let idle = Arc::clone(&self.idle);
        let again = job.clone();
        let work = move || work(id, &jobs, &again, &idle);
        thread::Builder::new().name("connection".to_owned()).spawn(work)?;
        Ok(Worker { id, job })
    }
}

impl Reserved {
    /// Runs the job on the thread.
    pub(crate) fn run(mut self, job: impl FnOnce() + Send + 'static) {
        if let Some(worker) = self.worker.take() {
            // It cannot fail: a thread ends only if it finds itself among the idle ones, and this is not.
            let _ = worker.job.send(Box::new(job));
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.idle).extend(self.worker.take());
    }
}

/// Runs jobs until none comes for too long. A job that panics ends the thread, and nothing else.
fn work(id: u64, jobs: &Receiver<Job>, again: &Sender<Job>, idle: &Mutex<Vec<Worker>>) {
    loop {
        match jobs.recv_timeout(KEPT_FOR) {
            Ok(job) => {
                job();
                lock(idle).push(Worker { id, job: again.clone() });
            }
            Err(RecvTimeoutError::Timeout) => {
                let mut idle = lock(idle);
                if let Some(index) = idle.iter().position(|worker| worker.id == id) {
                    idle.remove(index);
                    return;
                }
                // It has been reserved a moment ago: a job will come.
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn lock(idle: &Mutex<Vec<Worker>>) -> MutexGuard<'_, Vec<Worker>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
