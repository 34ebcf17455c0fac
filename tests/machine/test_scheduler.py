"""Divergence, loops, grids, and what an observer sees."""

import numpy as np
from machine import launch as launching
from machine.small import launch

ADDRESS = """
    mov.u32 %r1, %ctaid.x; mad.lo.s32 %r2, %r1, %ntid.x, %r0; mul.wide.u32 %d10, %r2, 4; add.s64 %d11, %d0, %d10;
"""
COLLATZ = f"""
    {ADDRESS}
    ld.global.b32 %r3, [%d11];
    mov.b32 %r4, 0;
AGAIN:
    setp.le.u32 %p1, %r3, 1;
    @%p1 bra DONE;
    and.b32 %r5, %r3, 1;
    setp.eq.b32 %p2, %r5, 0;
    @%p2 bra EVEN;
    mad.lo.s32 %r3, %r3, 3, 1;
    bra.uni NEXT;
EVEN:
    shr.u32 %r3, %r3, 1;
NEXT:
    add.s32 %r4, %r4, 1;
    bra AGAIN;
DONE:
    st.global.b32 [%d11], %r4;
"""


def collatz(n):
    steps = 0
    while n > 1:
        n, steps = (3 * n + 1 if n % 2 else n // 2), steps + 1
    return steps


def test_threads_that_loop_differently():
    x = np.arange(1, 4 * 64 + 1, dtype=np.uint32)
    expected = [collatz(int(n)) for n in x]
    launch(COLLATZ, [x], 64, (4, 1, 1))
    assert x.tolist() == expected


def test_blocks_that_meet_their_barrier_at_different_times():
    """Block b passes the barrier b times; the words of its threads move on by one each time."""
    body = f"""
        {ADDRESS}
        shl.b32 %r6, %r0, 2; add.s32 %r7, %r6, 4; and.b32 %r7, %r7, 255;
        mov.b32 %r8, %r0;
        mov.b32 %r5, 0;
    AGAIN:
        setp.ge.u32 %p1, %r5, %r1;
        @%p1 bra DONE;
        st.shared.b32 [%r6], %r8;
        bar.sync 0;
        ld.shared.b32 %r8, [%r7];
        bar.sync 0;
        add.s32 %r5, %r5, 1;
        bra AGAIN;
    DONE:
        st.global.b32 [%d11], %r8;
    """
    x = np.zeros((5, 64), np.uint32)
    launch(body, [x], 64, (5, 1, 1), shared=256)
    assert x.tolist() == [[(thread + block) % 64 for thread in range(64)] for block in range(5)]


def test_a_barrier_in_divergent_code_of_two_warps():
    """The two warps of a block take different ways and meet at one barrier."""
    body = f"""
        {ADDRESS}
        shl.b32 %r6, %r0, 2; xor.b32 %r7, %r6, 128; mov.b32 %r8, 1;
        setp.lt.u32 %p1, %r0, 32;
        @%p1 bra LOW;
        mov.b32 %r8, 2;
        bra MEET;
    LOW:
        add.s32 %r8, %r8, 10;
    MEET:
        st.shared.b32 [%r6], %r8;
        bar.sync 0;
        ld.shared.b32 %r9, [%r7];
        st.global.b32 [%d11], %r9;
    """
    x = np.zeros((3, 64), np.uint32)
    launch(body, [x], 64, (3, 1, 1), shared=256)
    assert (x[:, :32] == 2).all()
    assert (x[:, 32:] == 11).all()


def test_grids_of_several_chunks(monkeypatch):
    """Programs are numbered with x fastest, whatever the size of a chunk."""
    body = """
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %ctaid.z; mov.u32 %r4, %nctaid.x;
        mov.u32 %r5, %nctaid.y;
        mad.lo.s32 %r6, %r3, %r5, %r2; mad.lo.s32 %r6, %r6, %r4, %r1;
        mad.lo.s32 %r7, %r6, 32, %r0; mul.wide.u32 %d10, %r7, 4; add.s64 %d11, %d0, %d10;
        shl.b32 %r8, %r3, 16; shl.b32 %r9, %r2, 8; or.b32 %r8, %r8, %r9; or.b32 %r8, %r8, %r1;
        st.global.b32 [%d11], %r8;
    """
    results = []
    for lanes in (1 << 13, 96, 32):
        monkeypatch.setattr(launching, "LANES", lanes)
        x = np.zeros((2, 3, 5, 32), np.uint32)
        launch(body, [x], 32, (5, 3, 2))
        results.append(x)
    z, y, place = np.meshgrid(np.arange(2), np.arange(3), np.arange(5), indexing="ij")
    for x in results:
        assert np.array_equal(x, np.broadcast_to((z << 16 | y << 8 | place)[..., None], x.shape))


class Counter:
    """Counts executed instructions per thread, and the bytes and sectors of accesses."""

    def __init__(self):
        self.issued, self.executed, self.accesses, self.launches = 0, 0, [], []

    def launch(self, name, grid, threads, arguments):
        self.launches.append((name, grid, threads, list(arguments)))

    def instruction(self, chunk, step, group, active):
        self.issued += chunk.count(group)
        self.executed += chunk.count(active)

    def access(self, chunk, step, addresses, lanes):
        self.accesses.append((step.space, step.opcode, step.width * step.count, addresses.copy()))


def test_an_observer_sees_instructions_and_accesses():
    x = np.arange(1, 33, dtype=np.uint32)
    counter = Counter()
    launch(COLLATZ, [x.copy()], 32, observer=counter)
    steps = sum(collatz(int(n)) for n in x)
    # 8 before the loop, 7 per turn either way, and 4 from the last test on; guards that are false count as issued
    assert counter.executed == 32 * (8 + 4) + steps * 7
    odd = steps - sum(collatz_evens(int(n)) for n in x)
    assert counter.issued == counter.executed + steps + odd
    assert counter.launches == [("small", (1, 1, 1), 32, ["a0"])]
    (space, opcode, size, addresses), second = counter.accesses[0], counter.accesses[-1]
    assert (space, opcode, size) == ("global", "ld.global.b32", 4)
    assert np.array_equal(np.diff(addresses), np.full(31, 4))
    assert second[1] == "st.global.b32"
    assert sum(len(access[3]) for access in counter.accesses) == 64


def collatz_evens(n):
    count = 0
    while n > 1:
        count += n % 2 == 0
        n = 3 * n + 1 if n % 2 else n // 2
    return count
