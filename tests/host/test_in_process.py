"""The in-process host: its executor really runs nodes in inference mode, in this process."""

import torch

from latent_clip.tests.host_server import TINY_SDXL


def test_executor_runs_nodes_in_inference_mode(host_env):
    import nodes

    seen = {}

    class Probe:
        INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
        RETURN_TYPES = ()
        FUNCTION = "look"
        OUTPUT_NODE = True

        def look(self, model):
            seen["inference"] = torch.is_inference_mode_enabled()
            seen["weights"] = next(model.model.parameters()).is_inference()
            seen["device"] = str(model.load_device)
            return ()

    nodes.NODE_CLASS_MAPPINGS["Probe"] = Probe
    try:
        executor = host_env.execute({
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": TINY_SDXL}},
            "2": {"class_type": "Probe", "inputs": {"model": ["1", 0]}},
        })  # fmt: skip
    finally:
        del nodes.NODE_CLASS_MAPPINGS["Probe"]
    assert executor.success, executor.status_messages
    assert seen == {"inference": True, "weights": True, "device": "cpu"}


def test_failing_prompt_is_reported_by_the_executor(host_env):
    executor = host_env.execute({
        "1": {"class_type": "TestLoadLatent", "inputs": {"name": "nowhere"}},
        "2": {"class_type": "TestDump", "inputs": {"value": ["1", 0], "name": "never"}},
    })  # fmt: skip
    assert not executor.success
    (error,) = [data for kind, data in executor.status_messages if kind == "execution_error"]
    assert error["exception_type"] == "FileNotFoundError"
