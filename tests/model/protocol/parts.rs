//! What a server consists of in the model: processes, what lies between them, and connections.

/// The most processes at a time. The place of one that has ended is free for another.
pub const PROCESSES: usize = 3;
/// The most connections.
pub const CONNECTIONS: usize = 2;

/// The words of the link that change anything; `without` and `above` do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    Go,
    No,
    Ready,
    Serving,
    HandedOver,
    Stopping,
}

/// The messages of the socket of moves, each with the number of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    Move(u8),
    Took(u8),
    Refused(u8),
    Kept,
}

/// What has been sent and not received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queue<T>([Option<T>; 4]);

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue([const { None }; 4])
    }
}

impl<T: Copy + PartialEq> Queue<T> {
    pub fn push(&mut self, item: T) {
        let end = self.0.iter_mut().find(|place| place.is_none());
        *end.expect("more is on its way than the model has room for") = Some(item);
    }

    pub fn first(&self) -> Option<T> {
        self.0[0]
    }

    pub fn iter(&self) -> impl Iterator<Item = T> {
        self.0.iter().map_while(|item| *item)
    }

    pub fn pop(&mut self) -> Option<T> {
        let first = self.0[0].take();
        self.0.rotate_left(1);
        first
    }

    pub fn contains(&self, item: T) -> bool {
        self.0.contains(&Some(item))
    }
}

/// Where a process is in its program: a phase, or a step of it at whose end it can be killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum At {
    // serve.rs and predecessor.rs
    #[default]
    Prepare,
    WaitForGo,
    Inherit,
    AskAbove,
    Accept,
    SayServing,
    // process.rs
    Serve,
    Stop,
    Close,
    StepBack,
    HandOver,
    Progress,
    SayGo,
    Overlap,
    News(Caller, Look),
    Drain,
    EndArrivals,
    KeepConnections,
    Finish,
    End,
    Exit,
}

/// A look at a candidate or successor, in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Look {
    Exit,
    CloseForWords,
    Words,
    SayNo,
    /// `last_news` goes on with these.
    LastClose,
    LastWords,
}

/// Which phase looks at its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    Overlap,
    Drain,
    GoForward,
    Leave,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum News {
    #[default]
    None,
    Serving,
    HandedOver,
    Stopping,
    Died,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Life {
    #[default]
    Absent,
    Alive,
    /// Its descriptors are closed, but wait(2) does not return it yet.
    Ended,
    Waitable,
}

/// The listening socket in one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Gate {
    #[default]
    Closed,
    Shut,
    Open,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Process {
    pub life: Life,
    pub at: At,
    pub gate: Gate,
    pub predecessor: Option<u8>,
    /// It has its end of the link to its predecessor.
    pub has_link: bool,
    /// It has, too, its predecessor's end of the link above.
    pub has_above: bool,
    /// It has asked for the sockets itself, so it is no child of its predecessor.
    pub is_stranger: bool,
    /// It was told to go.
    pub is_granted: bool,
    /// Its candidate, or the successor that it answers for.
    pub successor: Option<u8>,
    pub has_given_up: bool,
    /// A stop waits for the end of the candidate.
    pub is_to_stop: bool,
    /// What a look at the successor has found so far.
    pub exited: bool,
    pub link_ended: bool,
    pub news: News,
    /// Where its idle connections are moved, by the successor's number.
    pub mover: Option<u8>,
    pub is_draining: bool,
    /// The drain is complete, or over.
    pub is_drained: bool,
    /// The drain's deadline has passed: its connections are cut.
    pub is_late: bool,
    /// A drain is not complete before its predecessor's end of the moves is closed.
    pub expects_arrivals: bool,
    /// It closes connections that are idle.
    pub is_closing: bool,
    /// An operator has stopped it.
    pub is_stopped: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum End {
    #[default]
    Closed,
    /// A candidate has it, and does not read.
    Unread,
    Open,
    /// The receiving side is shut.
    Shut,
}

/// The link of a process to its predecessor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Link {
    pub down: Queue<Word>,
    pub up: Queue<Word>,
    /// The predecessor's.
    pub end: End,
}

/// The socket through which connections are moved between a process and its predecessor. The first end is the
/// predecessor's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Moving {
    pub ends: [End; 2],
    /// `kept` has been said there, and what was not acknowledged is about to be used again.
    pub keeps: [bool; 2],
    /// What each end is to receive.
    pub queues: [Queue<Message>; 2],
}

/// What a process has of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hold {
    #[default]
    Nothing,
    Idle,
    InFlight,
    /// Sent through that socket, and not acknowledged.
    Moving(u8),
    /// Received through that socket; that this process takes it could not be said.
    Unacknowledged(u8),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Stage {
    #[default]
    Outside,
    Queued,
    Open,
    Over,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Connection {
    pub stage: Stage,
    /// In each process.
    pub holds: [Hold; PROCESSES],
    /// It has come before the server was stopped.
    pub is_in_time: bool,
    /// The process has died that had it.
    pub is_bereft: bool,
}
