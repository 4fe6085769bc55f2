"""An artifact as JSON: what 0.1.0 wrote is read, and what is written is in its words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from qeval.core.artifact import Artifact, Format, LayerReport, Library

# Artifact.to_json() of 0.1.0 for a GPTQ folder of one layer (describe_packed).
OLD = json.loads("""
{"path": "q", "engine": "hf", "simulated": false, "weight_bytes": 17408, "embedding_bytes": 32768,
 "bpw": 4.28125, "bpw_file": 8.2,
 "layers": [{"name": "model.layers.0.mlp.up_proj", "shape": [256, 128], "kind": "int4",
   "stored_bytes": 17536, "mse": null, "loss": null, "relative_loss": null, "outlier_share": null,
   "damping": null, "note": ""}],
 "notes": ["a note"],
 "details": {"format": {"name": "gptq", "extra": "gptqmodel", "modules": ["gptqmodel"],
   "label": "GPTQ W4A16g128 act-order", "num_bits": 4, "group_size": 128, "symmetric": true,
   "details": {"checkpoint_format": "gptq", "act_order": true, "lm_head": false, "mixed": false}},
  "library": {"name": "gptqmodel", "version": "7.6.0"}}}
""")


def test_the_format_of_an_artifact_of_0_1_0_becomes_its_field_and_is_written_as_it_was():
    artifact = Artifact.from_json(OLD)
    packed = artifact.format
    assert isinstance(packed, Format)
    assert (packed.name, packed.num_bits, packed.group_size) == ("gptq", 4, 128)
    assert packed.details["checkpoint_format"] == "gptq"
    assert artifact.library == Library("gptqmodel", "7.6.0")
    assert artifact.details == {}
    assert json.dumps(artifact.to_json()) == json.dumps(OLD)
    assert artifact.summary()["details"]["format"]["label"] == "GPTQ W4A16g128 act-order"


def test_float_weights_have_none():
    floats = {**OLD, "details": {}}
    artifact = Artifact.from_json(floats)
    assert artifact.format is None
    assert json.dumps(artifact.to_json()) == json.dumps(floats)


FOUND = Artifact(
    path=Path("/m"),
    engine="hf",
    simulated=False,
    weight_bytes=10,
    embedding_bytes=5,
    bpw=4.5,
    bpw_file=6.0,
    layers=(LayerReport("a.b", (4, 2), "int4", 9),),
    notes=("a note",),
    identity="sha256:1",
    trust_remote_code=True,
    library=Library("gptqmodel", "7.6"),
    calibration={"dataset": "c4-train", "n_tokens": 7, "text_sha256": "f"},
    details={"layers": {"worst_layer": "a.b"}},
)

# The details as 0.1.0 wrote them.
OF_0_1_0 = {
    "layers": {"worst_layer": "a.b"},
    "identity": "sha256:1",
    "trust_remote_code": True,
    "library": {"name": "gptqmodel", "version": "7.6"},
    "calibration": {"dataset": "c4-train", "n_tokens": 7, "text_sha256": "f"},
}


def test_json_has_the_keys_of_0_1_0_and_is_read_back():
    data = json.loads(json.dumps(FOUND.to_json()))
    assert data["details"] == OF_0_1_0
    assert set(data) == {
        *("path", "engine", "simulated", "weight_bytes", "embedding_bytes"),
        *("bpw", "bpw_file", "layers", "notes", "details"),
    }
    assert Artifact.from_json(data) == FOUND


def test_what_is_not_there_is_not_written():
    bare = replace(FOUND, identity=None, trust_remote_code=False, library=None, calibration=None)
    data = json.loads(json.dumps(bare.to_json()))
    assert data["details"] == {"layers": {"worst_layer": "a.b"}}
    assert Artifact.from_json(data) == bare


def test_reading_leaves_the_data_as_it_was():
    data = json.loads(json.dumps(FOUND.to_json()))
    Artifact.from_json(data)
    assert data["details"] == OF_0_1_0
