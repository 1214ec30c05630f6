"""An event file by PyTorch's summaries and TensorBoard's own protobuf messages and record writer.

Writes test/fixtures/tensorboard/events.out.tfevents.fixture and events.json, what it says, one entry a record:
{wallTime, step, version | start | scalars: [[tag, value], …] | text: [tag, markdown]}. Values that JSON cannot hold are
the strings "NaN", "Infinity" and "-Infinity".
Needs tensorboard==2.21.0 beside what the other scripts need.
"""

import json
import math

from common import FIXTURES
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

WALL_TIME = 1_760_000_000.0
LONG = 2_147_483_648 * 3  # more than 32 bits

RECORDS = [
    {"wallTime": WALL_TIME, "step": 0, "version": "brain.Event:2"},
    {"wallTime": WALL_TIME + 0.125, "step": 0, "start": True},
    {"wallTime": WALL_TIME + 0.125, "step": 7, "start": True},
    {"wallTime": WALL_TIME, "step": 0, "text": ["config", '    {\n      "method": "milora", "name": "Zürich 東京"\n    }']},
    {"wallTime": WALL_TIME + 0.123456789, "step": 1, "scalars": [["train/loss", 0.1]]},
    {"wallTime": WALL_TIME + 2, "step": 300, "scalars": [["train/loss", 0.0], ["experts/layer_3/q_proj", -1e-30]]},
    {"wallTime": WALL_TIME + 3, "step": LONG, "scalars": [["a", math.inf], ["b", -math.inf], ["c", 1e39], ["d", 16777217.0]]},
    {"wallTime": WALL_TIME + 4, "step": 2, "scalars": [["tag/" + "long " * 60, 1.5]] * 1},
    {"wallTime": WALL_TIME + 5, "step": 3, "scalars": [["not a number", math.nan]]},
]


def event_of(record):
    event = Event(wall_time=record["wallTime"], step=record["step"])
    if "version" in record:
        event.file_version = record["version"]
    elif "start" in record:
        event.session_log.status = SessionLog.START
    elif "text" in record:
        event.summary.CopyFrom(summary.text(*record["text"]))
    else:
        values = [value for tag, number in record["scalars"] for value in summary.scalar(tag, number).value]
        event.summary.CopyFrom(Summary(value=values))
    return event


def spelled(value):
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [spelled(entry) for entry in value]
    if isinstance(value, dict):
        return {key: spelled(entry) for key, entry in value.items()}
    return value


def main():
    directory = FIXTURES / "tensorboard"
    directory.mkdir(exist_ok=True)
    with open(directory / "events.out.tfevents.fixture", "wb") as file:
        writer = RecordWriter(file)
        for record in RECORDS:
            writer.write(event_of(record).SerializeToString())
        writer.flush()
    text = json.dumps(spelled(RECORDS), ensure_ascii=False, indent=1)
    (directory / "events.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
