"""Moving connections, as the sender and as the receiver."""
import socket, time
from wire import OPTIONS, add_client, clients


def send(moves):
    """Moves the clients, but for those that the other process does not take."""
    sent, refused, most = {}, set(), 16
    while sent or most and clients.keys() - refused:
        for client in list(clients.keys() - refused)[: max(0, most - len(sent))]:
            used, since, ends = clients.pop(client)
            sent[client.fileno()] = client, used, since, ends
            waited = int((time.monotonic() - since) * 1000)
            moves.say(f"move {client.fileno()} {used} {waited} {ends}", client.fileno(), end="")
        answer = moves.hear(seconds=5)
        if answer is None:
            moves.shutdown(socket.SHUT_RD)  # no answer can be given any more; those that have been come now
            most = 0
        elif answer.startswith("took "):
            sent.pop(int(answer[5:]))[0].close()
        elif answer.startswith("refused "):
            client, *clients[client] = sent.pop(int(answer[8:]))
            refused.add(client)
        elif answer in ("kept", ""):
            break
    if not most:
        moves.say("kept", end="")  # there is room for 17 messages: if it cannot be said, the other end is closed
    clients.update((client, about) for client, *about in sent.values())


unheard = []  # what has come, but could not be answered


def receive(moves):
    """Takes the next message, and returns whether there was one."""
    message = moves.hear()
    match message.split(" "), [socket.socket(fileno=number) for number in moves.descriptors]:
        case ["move", n, "used" | "new" as used, waited, *ends], [client] if "refuses" not in OPTIONS:
            if moves.say(f"took {n}", end=""):
                add_client(client, " ".join(ends[:2]), used, int(waited) / 1000)
            else:
                unheard.append((client, " ".join(ends[:2]), used))
        case ["move", n, *_], _:
            moves.say(f"refused {n}", end="")
        case ["kept"], _:
            unheard.clear()
        case [""], _:
            for each in unheard:
                add_client(*each)
    return message != ""
