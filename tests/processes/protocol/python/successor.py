"""A successor, which its predecessor has started. It stops on SIGTERM."""
import itertools, os, signal, socket, sys
import moving
from wire import OPTIONS, End, listeners, log, signals, until


def succeed(handed, link, moves, others):
    """The steps of a successor that has heard the first line of the greeting."""
    # 1: the greeting.
    above, stop = None, signals(signal.SIGTERM)
    while word := link.hear(seconds=0):
        match word.split(" "):
            case ["above"]:
                above = End(fileno=next(others))
            case ["file", _, _, _]:
                pass  # the last process removes it, which this is not meant to be
            case ["named", "lock"]:
                os.write(next(others), b"held by %d" % os.getpid())
            case ["state"]:
                log(f"the state is {os.pread(next(others), 65536, 0)}")
            case _:
                link.say(f"failed it does not know {word}")
                sys.exit(1)
    # 2: ready, and go.
    if "without" in OPTIONS:
        handed.pop().close()
        link.say(f"without {len(handed)}")
    link.say("ready to overlap" if "overlaps" in OPTIONS else "ready")
    word = link.hear(seconds=60)
    if word is None or word != "" and not word.startswith("go "):
        sys.exit(f"its predecessor says {word}")
    # 3: handed over.
    if above and not above.say("handed over"):
        while (word := above.hear(seconds=60)) and not word.startswith("no "):
            pass
        if word != "":
            sys.exit("another process serves")
    # 4: serving.
    listeners.extend(handed)
    log(f"process {os.getpid()} is ready, in Python")
    link.say("serving")
    # 5: what is moved.
    arrivals = [moves]
    if "moves-none" in OPTIONS:
        arrivals.pop().close()
    while until(stop, *arrivals) is not stop:
        if not moving.receive(moves):
            arrivals.clear()
    # 6: stopping.
    link.say("stopping")
    listeners.clear()
    if arrivals and "overlaps" in OPTIONS:
        moving.send(moves)


if __name__ == "__main__":
    handed, numbers = [], itertools.count(3)
    while (end := End(fileno=next(numbers))).getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        handed.append(end)
    if os.environ.get("HANDOVER") != "1" or end.hear(seconds=0) != "handover 1":
        sys.exit("no predecessor has started it")
    succeed(handed, end, End(fileno=next(numbers)), numbers)
