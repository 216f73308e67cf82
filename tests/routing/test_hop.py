"""Gate, Flow, introductions: without any loop."""

from edge.routing.hop import Flow, Gate, introduce


class User:
    def __init__(self, gate: Gate | None = None) -> None:
        self.told: list[str] = []
        self.gate = gate

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def lost(self, reason: str) -> None:
        self.told.append(f"lost {reason}")
        if self.gate is not None:
            self.gate.leave(self)


def flow(address: bytes) -> Flow:
    made = Flow()
    made.address = address
    return made


def test_a_gate_tells_its_users() -> None:
    gate, user, other = Gate(), User(), User()
    gate.join(user)
    gate.join(other)
    gate.shut()
    gate.shut()
    gate.leave(other)
    gate.release()
    gate.release()
    assert user.told == ["pause", "resume"]
    assert other.told == ["pause"]


def test_who_joins_a_shut_gate_is_paused_at_once() -> None:
    gate, user = Gate(), User()
    gate.shut()
    gate.join(user)
    assert user.told == ["pause"]


def test_lost_comes_exactly_once_and_is_the_end() -> None:
    gate = Gate()
    user, late = User(gate), User()
    gate.join(user)
    gate.lost("gone")
    gate.lost("again")
    gate.shut()
    gate.release()
    gate.join(late)
    assert user.told == ["lost gone"]
    assert late.told == ["lost gone"]


def test_who_leaves_while_all_are_told_is_harmless() -> None:
    gate = Gate()
    users = [User(gate) for _ in range(3)]
    for user in users:
        gate.join(user)
    gate.lost("gone")
    assert [user.told for user in users] == [["lost gone"]] * 3


def test_a_flow_reaches_its_own_and_its_wiring() -> None:
    one = flow(b"one")
    one.parent = {b"echo"}
    one.reach.add(b"private")
    assert [one.may_reach(x) for x in (b"echo", b"private", b"other")] == [True, True, False]


def test_an_introduction_is_between_the_two() -> None:
    one, other, third = flow(b"one"), flow(b"other"), flow(b"third")
    introduce(one, other)
    assert one.may_reach(b"other")
    assert other.may_reach(b"one")
    assert not one.may_reach(b"third")
    assert not third.may_reach(b"one")


def test_an_introduction_ends_with_either_and_leaves_nothing() -> None:
    hub = flow(b"hub")
    guests = [flow(b"guest %d" % n) for n in range(10)]
    for guest in guests:
        introduce(guest, hub)
    for guest in guests:
        guest.forget()
    assert not hub.reach
    assert not hub._known_by
