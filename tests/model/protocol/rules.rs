//! What may happen in a run of the model, and which rule of the protocol it leaves out.

/// What may happen from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// How often a process is killed, or fails before it is ready.
    pub deaths: u8,
    pub restarts: u8,
    /// How often a process that is no child asks for the sockets.
    pub takeovers: u8,
    pub stops: u8,
    pub connections: u8,
    /// Connections can be moved.
    pub moves: bool,
    /// A process may refuse a connection that is moved there, or take none at all.
    pub refusals: bool,
    /// Processes are started with `--overlap`.
    pub overlap: bool,
}

const FEW: Bounds = Bounds {
    deaths: 1,
    restarts: 2,
    takeovers: 0,
    stops: 1,
    connections: 0,
    moves: false,
    refusals: false,
    overlap: false,
};

/// Enough to see all that one process does.
pub const TRACED: [Bounds; 4] = [
    Bounds { deaths: 2, ..FEW },
    Bounds { deaths: 0, stops: 2, ..FEW },
    Bounds { restarts: 0, takeovers: 2, ..FEW },
    Bounds { stops: 2, overlap: true, ..FEW },
];

/// A rule of the protocol, which a run can leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A candidate accepts nothing before `go`.
    WaitForGo,
    NeverKillAfterGo,
    /// Who has been told to go says `handed over` above, for its predecessor, before it accepts.
    SayHandedOverAbove,
    /// If that cannot be said, the process above has taken back, or is gone.
    AskAboveWhetherToServe,
    SayNoAtTakeBack,
    CloseForWordsAtTakeBack,
    LookForTheEndBeforeTheWords,
    LookOnceMoreBeforeLeaving,
    LookOnceMoreBeforeGoingForward,
    /// `serving` is not the last word, if another one is behind it.
    HearTheVeryLastWord,
    /// A successor that has handed over has not been stopped.
    HandedOverIsNoStop,
    SayStopping,
    /// Also when nobody goes forward from an overlap.
    SayStoppingFromAnOverlap,
    KillTheCandidateAtStop,
    AcceptTheQueueAtStop,
    CloseAfterTheAcknowledgement,
    ReadAfterTheAcknowledgement,
    ResumeWhatWasRefused,
    ShutAtAnswerTimeout,
    ShutAtTheEndOfMoves,
    SayKept,
    DropTheUnacknowledgedAtKept,
    ServeTheUnacknowledgedAtDeath,
    /// A process that ends the moves itself cannot tell whether the other one has died.
    DropTheUnacknowledgedAtTheEndOfMoves,
    /// What is not acknowledged may be the other process's.
    CutOnlyWhatIsServed,
    /// What is moved to a process that is about to end is still served there, or not taken.
    EndTheArrivalsBeforeTheDrain,
}
