#!/usr/bin/env python3
"""Exhaustive check of the repository's repair rules in a small scope.

`docs/design/0005-scrub-and-repair.md` has the rules in words. The other rules of the protocol are checked by
the Rust model beside this file.

The scope: one root register (compare-and-swap), objects, one committed snapshot, writers that share content
with it, retention of two, a sweep without an age rule, a restore that pins a snapshot, a repair, and one
object that is damaged or lost at any moment. A party that reads the root, decides and swaps makes one step:
if the root had changed in between, it would start that step again. A bulk delete is one step: no other
party's step depends on which objects exist. A crash is a party that makes no further step. Three scopes, each
complete: `fencing` (one writer, two fences), `pins` (a restore), `races` (two writers, no sweep).

    python3 repair_protocol.py            all rules hold, and each rule that is removed is caught
    python3 repair_protocol.py rewrite    one control, with the steps that lead to the loss

Removed rules:

  rewrite        the repair writes the object again under its own key
  no-intent      the repair uploads without an intent
  intent-unseen  the repair's swap does not require its intent in the root that it replaces
  old-unseen     the repair's swap does not require the replaced snapshot in that root
  delete-first   the repair deletes the replaced metadata before the swap
  drop-pin       the repair's swap removes the pins of the snapshot that it replaces
  pins-ignored   the repair's deletions ignore pins
  marks-ignored  a commit accepts a reused key that is marked
  mark-last      the repair plans first and marks afterwards
"""
import sys
from collections import deque

CONTROLS = {
    "rewrite": ("races", "a key is written twice"),
    "no-intent": ("fencing", "a key is written twice"),
    "intent-unseen": ("fencing", "a kept snapshot lacks an object"),
    "old-unseen": ("races", "a repair changed which positions are retained"),
    "delete-first": ("fencing", "a kept snapshot lacks an object"),
    "drop-pin": ("pins", "a restore reads a snapshot that lacks an object"),
    "pins-ignored": ("pins", "a kept snapshot lacks an object"),
    "marks-ignored": ("races", "a marked key was committed"),
    "mark-last": ("races", "a repaired key is referenced"),
}
CONTENT = {1: ("a", "b"), 2: ("a",)}  # the files of the snapshot of each writer, whose LSN is its number
RETAINED = 2
FIRST = (0, 0, frozenset({("a", 1), ("m", 0)}))  # LSN, snapshot id, objects

# root = (generation, retained, intents ((generation, ids),), pins ((id, keys),), marks)
ROOT = (1, (FIRST,), (), (), frozenset())
WRITER = ("intend", 0, 0, frozenset(), (), frozenset(), 0)  # step, id, generation, keys, to put, own, tries
REPAIR = ("find", None, 0, (), (), 0)  # step, key, generation, targets (lsn, old, new, keys), to do, tries
# state = (root, objects, bad, lost, written, writers, sweep, restore, repair, repaired key, broken, left fences)
SCOPES = {"fencing": (1, False, 2, 2), "pins": (1, True, 0, 1), "races": (2, False, 0, 0)}  # writers, restore, fences, sweeps


def start(scope):
    writers, restores, fences, sweeps = SCOPES[scope]
    return (ROOT, FIRST[2], frozenset(), frozenset(), FIRST[2], (WRITER,) * writers, ("list", sweeps),
            ("idle" if restores else "end", None), REPAIR, None, None, fences)


def kept(root):
    return frozenset(k for _, _, keys in root[1] for k in keys)


def refs(root):
    return kept(root) | frozenset(k for _, keys in root[3] for k in keys)


def steps(s, control):
    root, objs, bad, lost, written, writers, sweep, restore, repair, repaired, broken, fences = s
    gen, retained, intents, pins, marks = root

    def to(**new):
        names = ("root", "objs", "bad", "lost", "written", "writers", "sweep", "restore", "repair", "repaired", "broken", "fences")
        return tuple(new.get(name, value) for name, value in zip(names, s))

    def put(key, **new):
        if key in written:
            new["broken"] = "a key is written twice"
        return to(objs=objs | {key}, written=written | {key}, **new)

    # The writers.
    for i, w in enumerate(writers):
        step, sid, g, keys, todo, own, tries = w
        lsn = i + 1

        def by(nw, i=i):
            ws = list(writers)
            ws[i] = nw
            return tuple(ws)

        if step == "intend":
            sid = lsn * 10 + tries
            have = {k[0]: k for k in sorted(kept(root)) if k[0] != "m" and k not in marks}
            reused = frozenset(have[c] for c in CONTENT[lsn] if c in have)
            own = frozenset((c, gen + 1) for c in CONTENT[lsn] if c not in have)
            todo = tuple(sorted(own)) + (("m", sid),)
            nroot = (gen + 1, retained, intents + ((gen + 1, (sid,)),), pins, marks)
            yield to(root=nroot, writers=by(("put", sid, gen + 1, reused | own, todo, own, tries)))
        elif step == "put" and todo:
            nw = ("put", sid, g, keys, todo[1:], own, tries)
            yield put(todo[0], writers=by(nw))
        elif step == "put":
            live = any(g == ig and sid in ids for ig, ids in intents)
            usable = kept(root) if control in ("marks-ignored", "mark-last") else kept(root) - marks
            old = len(retained) == RETAINED and lsn < retained[-1][0]
            if live and not old and keys - own <= usable:
                entry = (lsn, sid, keys | {("m", sid)})
                all_ = tuple(sorted(retained + (entry,), reverse=True, key=lambda r: r[0]))
                left = tuple(x for x in intents if x[0] != g)
                nroot = (gen + 1, all_[:RETAINED], left, pins, marks)
                gone = frozenset(k for r in all_[RETAINED:] for k in r[2]) - refs(nroot)
                wrong = "a marked key was committed" if keys & marks and control != "mark-last" else broken
                yield to(root=nroot, writers=by(("evict", 0, 0, frozenset(), tuple(sorted(gone)), frozenset(), 0)), broken=wrong)
            elif tries < 1 and not old:
                yield to(writers=by(("intend", 0, 0, frozenset(), (), frozenset(), tries + 1)))
            else:
                yield to(writers=by(("end", 0, 0, frozenset(), (), frozenset(), 0)))
        elif step == "evict":
            yield to(objs=objs - set(todo), writers=by(("end", 0, 0, frozenset(), (), frozenset(), 0)))

    # The sweep: it lists, reads the root, deletes.
    if sweep[0] == "list" and sweep[1]:
        yield to(sweep=("root", sweep[1] - 1, objs))
    elif sweep[0] == "root":
        live = {g for g, _ in intents}
        ids = {i for _, of in intents for i in of}
        needed = refs(root)
        gone = frozenset(k for k in sweep[2] if k not in needed and not (k[1] in ids if k[0] == "m" else k[1] in live))
        yield to(sweep=("delete", sweep[1], gone) if gone else ("list", sweep[1]))
    elif sweep[0] == "delete":
        yield to(objs=objs - sweep[2], sweep=("list", sweep[1]))

    # Any intent is fenced at any moment.
    for intent in intents if fences else ():
        yield to(root=(gen + 1, retained, tuple(x for x in intents if x != intent), pins, marks), fences=fences - 1)

    # A restore pins a retained snapshot, reads it, and unpins it.
    if restore[0] == "idle":
        for _, sid, keys in retained:
            yield to(root=(gen + 1, retained, intents, pins + ((sid, keys),), marks), restore=("read", keys))
    elif restore[0] == "read":
        yield to(root=(gen + 1, retained, intents, (), marks), restore=("end", None))

    # One object that a retained snapshot needs is damaged, or lost.
    if not bad and not lost:
        for key in sorted(kept(root) & objs):
            if key[0] != "m":
                yield to(bad=bad | {key})
                yield to(objs=objs - {key}, bad=bad | {key}, lost=lost | {key})

    # The repair.
    step, key, g, targets, todo, tries = repair
    if step == "find":
        for key in sorted(bad & kept(root)):
            if control == "mark-last":
                yield to(repair=("intend", key, 0, (), (), 0))
            else:
                # Without a local file, this is its last step: the mark stays.
                nroot = (gen + 1, retained, intents, pins, marks | {key})
                yield to(root=nroot, repair=("intend", key, 0, (), (), 0))
    elif step == "intend":
        g = 1 if control == "rewrite" else gen + 1
        new = (key[0], key[1]) if control == "rewrite" else (key[0], g)
        targets = tuple((lsn, sid, 100 + sid * 10 + tries, (keys - {key, ("m", sid)}) | {new, ("m", 100 + sid * 10 + tries)})
                        for lsn, sid, keys in retained if key in keys)
        todo = (new,) + tuple(("m", t[2]) for t in targets)
        if not targets:
            yield to(repair=("end", None, 0, (), (), 0))
        elif control == "no-intent":
            yield to(repair=("put", key, g, targets, todo, tries))
        else:
            nroot = (gen + 1, retained, intents + ((gen + 1, tuple(t[2] for t in targets)),), pins, marks)
            yield to(root=nroot, repair=("put", key, gen + 1, targets, todo, tries))
    elif step == "put" and todo:
        yield put(todo[0], repair=("put", key, g, targets, todo[1:], tries))
    elif step == "put" and control == "delete-first" and any(("m", t[1]) in objs for t in targets):
        yield to(objs=objs - {("m", t[1]) for t in targets}, repair=repair)
    elif step == "put":
        live = any(g == ig and targets[0][2] in ids for ig, ids in intents) or control in ("no-intent", "intent-unseen")
        new = {t[1]: t for t in targets}
        if not live:
            again = ("intend", key, 0, (), (), tries + 1)
            yield to(repair=again if tries < 1 else ("end", None, 0, (), (), 0))
        else:
            replaced = [r for r in retained if r[1] in new]
            after = tuple((r[0], new[r[1]][2], new[r[1]][3]) if r[1] in new else r for r in retained)
            if control == "old-unseen":
                there = {r[1] for r in replaced}
                after += tuple((t[0], t[2], t[3]) for t in targets if t[1] not in there)
                after = tuple(sorted(after, reverse=True, key=lambda r: r[0]))
            left = tuple(x for x in intents if x[0] != g)
            held = tuple(p for p in pins if p[0] not in new) if control == "drop-pin" else pins
            has_it = any(key in r[2] for r in after)
            nroot = (gen + 1, after, left, held, marks if has_it else marks - {key})
            keep = kept(nroot) if control == "pins-ignored" else refs(nroot)
            gone = frozenset(k for r in replaced for k in r[2]) - keep
            wrong = broken
            if [r[0] for r in after] != [r[0] for r in retained]:
                wrong = "a repair changed which positions are retained"
            done = key if replaced and control != "rewrite" else repaired
            yield to(root=nroot, repair=("delete", key, 0, targets, tuple(sorted(gone)), 0), repaired=done, broken=wrong)
    elif step == "delete":
        yield to(objs=objs - set(todo), repair=("end", None, 0, (), (), 0))


def violation(s):
    root, objs, bad, lost, _, _, _, restore, _, repaired, broken, _ = s
    if broken:
        return broken
    if refs(root) - objs - lost:
        return "a kept snapshot lacks an object"
    if restore[0] == "read" and restore[1] - objs - lost:
        return "a restore reads a snapshot that lacks an object"
    if repaired is not None and repaired in kept(root):
        return "a repaired key is referenced"
    return None


REACHES = {
    "a repair replaces two snapshots": lambda s: s[8][0] == "delete" and len(s[8][3]) == 2,
    "a repair replaces a pinned snapshot": lambda s: s[8][0] == "delete" and any(p[0] == t[1] for p in s[0][3] for t in s[8][3]),
    "a damaged object is gone after its repair": lambda s: s[9] is not None and s[9] not in s[1] and not s[3],
    "a writer uploads what is marked": lambda s: any(("a", w[2]) in w[5] for w in s[5]),
    "a commit cuts off what a repair is about to replace":
        lambda s: s[8][0] == "put" and any(t[1] not in {r[1] for r in s[0][1]} for t in s[8][3]),
}


def explore(scope, control, verbose):
    first = start(scope)
    seen = {first: None}
    queue = deque([first])
    reached = set()
    while queue:
        s = queue.popleft()
        wrong = violation(s)
        if wrong:
            trace = []
            while s is not None:
                trace.append(s)
                s = seen[s]
            for state in reversed(trace) if verbose else ():
                print("  root", state[0], "\n    objects", sorted(state[1]), "repair", state[8][0], "sweep", state[6][0])
            return wrong, len(seen), len(trace) - 1, reached
        reached |= {name for name, so in REACHES.items() if name not in reached and so(s)}
        for n in steps(s, control):
            if n not in seen:
                seen[n] = s
                queue.append(n)
    return None, len(seen), 0, reached


def main():
    asked = sys.argv[1:]
    failed = False
    reached = set()
    for scope in () if asked else SCOPES:
        wrong, states, depth, some = explore(scope, None, True)
        reached |= some
        print(f"{scope}: {f'VIOLATED: {wrong} after {depth} steps' if wrong else f'holds in all {states} states'}", flush=True)
        failed |= bool(wrong)
    if not asked and set(REACHES) - reached:
        print(f"never reached: {sorted(set(REACHES) - reached)}")
        failed = True
    for control in asked or CONTROLS:
        scope, expected = CONTROLS[control]
        wrong, states, depth, _ = explore(scope, control, bool(asked))
        print(f"{control}: {'caught' if wrong == expected else 'NOT AS EXPECTED'}: {wrong} ({depth} steps, {states} states)", flush=True)
        failed |= wrong != expected
    sys.exit(failed)


main()
