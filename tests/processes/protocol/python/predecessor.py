"""A first process, which its arguments replace on SIGUSR2: a program, and {0} and {1} for the two addresses."""
import fcntl, os, signal, socket, sys
import moving, wire
from wire import OPTIONS, End, listeners, log, until


def start(command, handed):
    """Starts a child that finds these descriptors from 3 on."""
    copies = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 3 + len(handed)) for each in handed]
    places = [(os.POSIX_SPAWN_DUP2, copy, 3 + index) for index, copy in enumerate(copies)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    environment["HANDOVER"] = "1"
    child = os.posix_spawn(command[0], command, environment, file_actions=places, setsigdef=[signal.SIGPIPE])
    for copy in copies:
        os.close(copy)
    return child


def hand_on(link):
    """A file by name, and a state."""
    link.say("named lock")
    link.say("state")
    lock, state = os.memfd_create("lock"), os.memfd_create("state", os.MFD_ALLOW_SEALING)
    os.write(state, bytes(range(7)))
    fcntl.fcntl(state, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return lock, state


def hand_over(told):
    """The steps of a predecessor; whether another process is in the place of this one now."""
    # 1: the child, with its ends.
    ends = (socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET))
    link, its_link, moves, its_moves = (End(fileno=end.detach()) for pair in ends for end in pair)
    link.say("handover 1")
    handed_on = hand_on(link) if "hands-on" in OPTIONS else []
    addresses = ["%s:%d" % each.getsockname() for each in listeners]
    command = [argument.format(*addresses) for argument in sys.argv[1:]]
    child = start(command, [*listeners, its_link, its_moves, *handed_on])
    ended = os.fdopen(os.pidfd_open(child), "rb", 0)
    its_link.close(), its_moves.close()
    # 2: ready.
    without, listening = [], listeners[:]
    while (word := link.hear(ended, seconds=60) or "").startswith("without "):
        without.append(listeners[int(word[8:])])
    # 3: go.
    if word not in ("ready", "ready to overlap") or not link.say("go 2"):
        log(f"handover failed: {word or link.hear(seconds=0) or 'nothing'}")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False
    # 4: serving.
    serves, overlapped = link.hear(ended) == "serving", word == "ready to overlap"
    if serves and overlapped:
        serves = until(told, link, ended) is told
    if serves:
        listeners.clear()
        if "moves-none" not in OPTIONS:
            moving.send(moves)
        wire.closing = True
        until(ended, drained=True)
    else:
        while moving.receive(moves):
            pass
    # 5: the last look.
    moves.close()
    said = []
    while word := link.hear(seconds=0):
        said.append(word)
    has_died = word == "" or until(ended, seconds=0)
    link.shutdown(socket.SHUT_RD)  # from now on nothing can be said: what has been said decides
    said += iter(link.hear, "")
    if serves and (overlapped or "handed over" in said or "stopping" in said or not has_died):
        for listener in without:
            wire.accept(listener)
        until(drained=True)
        return True
    link.say("no, its predecessor takes back")
    log("accepting again")
    wire.closing, listeners[:] = False, listening
    until(ended)
    os.waitpid(child, 0)
    return False


if __name__ == "__main__":
    for _ in range(2):
        listeners.append(socket.create_server(("127.0.0.1", 0)))
        listeners[-1].setblocking(False)
        log("listening on %s:%d" % listeners[-1].getsockname())
    told = wire.signals(signal.SIGUSR2, signal.SIGTERM)
    log(f"process {os.getpid()} is ready, in Python")
    while until(told).recv(1)[0] == signal.SIGUSR2 and not hand_over(told):
        pass
