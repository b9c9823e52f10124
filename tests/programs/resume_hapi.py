"""A whole ``paddle.Model.fit``, and one saved and continued in another process.

python resume_hapi.py FOLDER
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from networks import Images, conv_net, model_for

from paddle_freeze_callback import FreezeSchedule


def train(folder: Path, name: str, epochs: int, resume_at: object, load: bool) -> None:
    """Fit for some epochs, save, and write down what came out."""
    schedule = FreezeSchedule(every="5 steps", verify=True, resume_at=resume_at)
    model = model_for(conv_net())
    if load:
        model.load(str(folder / "saved"))
    model.fit(Images(), batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=[schedule])
    model.save(str(folder / ("saved" if name == "first" else name)))
    state = model._optimizer.state_dict()
    result = {
        "weights": {n: t.numpy().tobytes() for n, t in model.network.state_dict().items()},
        "moments": {n: t.numpy().tobytes() for n, t in state.items() if hasattr(t, "numpy")},
        "history": [(c.step, c.opened) for c in schedule.history],
    }
    (folder / f"{name}.pickle").write_bytes(pickle.dumps(result))


def in_a_process(folder: Path, name: str, *rest: object) -> dict:
    child = multiprocessing.get_context("fork").Process(target=train, args=(folder, name, *rest))
    child.start()
    child.join()
    assert child.exitcode == 0, name
    return pickle.loads((folder / f"{name}.pickle").read_bytes())


def main(folder: str) -> None:
    """Compare continuing after one and after two of four epochs."""
    where = Path(folder)
    whole = in_a_process(where, "whole", 4, None, False)
    differs = {}
    for done, moments in ((2, ("2 epochs", "12 steps")), (1, ("1 epoch", "6 steps"))):
        in_a_process(where, "first", done, None, False)
        for moment in moments:
            resumed = in_a_process(where, "resumed", 4 - done, moment, True)
            differs[moment] = [k for k in ("weights", "moments") if whole[k] != resumed[k]]
            later = [entry for entry in whole["history"] if entry[0] > 6 * done]
            if later != resumed["history"][1:]:
                differs[moment].append("transitions")
    print("RESULT " + json.dumps({"differs": differs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
