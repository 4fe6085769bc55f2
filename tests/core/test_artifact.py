"""An artifact as JSON: what 0.1.0 wrote is read, and what is written is in its words."""

from __future__ import annotations

import json

from qeval.core.artifact import Artifact, Format

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
    assert artifact.details == {"library": {"name": "gptqmodel", "version": "7.6.0"}}
    assert json.dumps(artifact.to_json()) == json.dumps(OLD)
    assert artifact.summary()["details"]["format"]["label"] == "GPTQ W4A16g128 act-order"


def test_float_weights_have_none():
    floats = {**OLD, "details": {}}
    artifact = Artifact.from_json(floats)
    assert artifact.format is None
    assert json.dumps(artifact.to_json()) == json.dumps(floats)
