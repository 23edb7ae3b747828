"""Prints every scalar of the TensorBoard event files in a folder, read by TensorBoard itself: `step tag value`."""
import sys

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util


def main():
    events = event_accumulator.EventAccumulator(sys.argv[1], size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    for tag in sorted(tags["scalars"]):
        for event in events.Scalars(tag):
            print(event.step, tag, repr(float(event.value)))
    for tag in sorted(tags["tensors"]):
        for event in events.Tensors(tag):
            print(event.step, tag, repr(float(tensor_util.make_ndarray(event.tensor_proto))))


if __name__ == "__main__":
    main()
