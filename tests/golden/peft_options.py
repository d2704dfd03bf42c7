"""Writes peft_options.json: the option combinations of PEFT's own tests of custom models, as adapters on disk.

  cases   options   what differs from the defaults of LoraConfig in adapter_config.json
          refused   the option that this library must name, or null
          tensors   name -> shape in adapter_model.safetensors, by the formulas of PEFT's layers
"""
import json
import pathlib

# kind, in, out, kernel, groups
MODULES = {
    "lin0": ("linear", 10, 20, [], 1),
    "lin1": ("linear", 20, 2, [], 1),
    "emb": ("embedding", 100, 5, [], 1),
    "conv1d": ("conv", 5, 10, [3], 1),
    "conv2d": ("conv", 5, 10, [3, 3], 1),
    "conv2d_groups": ("conv", 10, 20, [3, 3], 2),
    "conv3d": ("conv", 5, 10, [3, 3, 3], 1),
}


def tensors(options):
    """A is (r, in, kernel...) and B (out, r / groups, 1...), the magnitude (out) or (1, out, 1...)."""
    shapes = {}
    targets = options.get("target_modules") or []
    for name in [targets] if isinstance(targets, str) else targets:
        kind, inputs, outputs, kernel, groups = MODULES[name]
        rank = options.get("rank_pattern", {}).get(name, options.get("r", 8))
        ones = [1] * len(kernel)
        stem = f"base_model.model.{name}.lora_"
        suffix = "" if kind == "embedding" else ".weight"
        middle = "embedding_" if kind == "embedding" else ""
        columns = inputs // options["qalora_group_size"] if options.get("use_qalora") else inputs
        shapes[f"{stem}{middle}A{suffix}"] = [rank, columns, *kernel]
        shapes[f"{stem}{middle}B{suffix}"] = [outputs, rank // groups, *ones]
        if options.get("use_dora"):
            shapes[f"{stem}magnitude_vector"] = [1, outputs, *ones] if kernel else [outputs]
        if options.get("lora_bias"):
            shapes[f"{stem}B.bias"] = [outputs]
        if options.get("velora_config"):
            shapes[f"{stem}velora_embed"] = [inputs // options["velora_config"]["num_groups"]]
    for name in options.get("modules_to_save", []):
        _, inputs, outputs, _, _ = MODULES[name]
        shapes[f"base_model.model.{name}.weight"] = [outputs, inputs]
        shapes[f"base_model.model.{name}.bias"] = [outputs]
    return shapes


def case(refused=None, **options):
    return {"options": options, "refused": refused, "tensors": tensors(options)}


VELORA = {"num_groups": 2, "scale": 1.0}
CASES = [
    case(target_modules="lin0"),
    case(target_modules=["lin0"]),
    case(target_modules=["lin0", "lin1"]),
    case(target_modules=["lin0"], modules_to_save=["lin1"]),
    case(target_modules=["lin0"], lora_alpha=4, lora_dropout=0.1),
    case(target_modules=["lin0", "lin1"], use_dora=True),
    case(target_modules="lin1", use_dora=True, lora_alpha=32),
    case(target_modules=["lin0"], r=4, init_lora_weights="mica"),
    case(target_modules=["lin0"], r=4, init_lora_weights="eva", eva_config={"rho": 2.0, "tau": 0.99}),
    case(target_modules=["lin0"], velora_config={**VELORA, "init_type": "random"}),
    case(target_modules=["lin0", "lin1"], velora_config={**VELORA, "init_type": "batch_average"}),
    case(target_modules=["lin0"], velora_config={**VELORA, "init_type": "batch_average_once"}),
    case(target_modules=["emb"]),
    case(target_modules=["emb", "lin0"], use_dora=True),
    case(target_modules=["conv1d"]),
    case(target_modules=["conv1d"], use_dora=True),
    case(target_modules=["conv2d", "lin0"]),
    case(target_modules=["conv2d", "lin0"], use_dora=True),
    case(target_modules=["conv2d_groups"]),
    case(target_modules=["conv2d_groups"], use_dora=True),
    case(target_modules=["conv3d", "lin0"]),
    case(target_modules=["conv3d", "lin0"], use_dora=True),
    case(target_modules=["lin0", "lin1"], lora_bias=True, lora_alpha=32),
    case(target_modules=["conv2d"], lora_bias=True, lora_alpha=32),
    case(target_modules=["conv3d"], lora_bias=True, lora_alpha=32),
    case(target_modules=["lin0", "lin1"], r=16, init_lora_weights=False),
    case(target_modules=["lin0", "lin1"], rank_pattern={"lin0": 2}, use_rslora=True),
    case(target_modules=["lin0"], alpha_pattern={"lin0": 3}, init_lora_weights="gaussian"),
    case(target_modules=["lin0"], corda_config={"corda_method": "ipm"}),
    case(target_modules=["lin0"], loftq_config={"loftq_bits": 4}),
    case("kasa_config", target_modules=["lin0"], r=4, kasa_config={"beta": 1e-4, "gamma": 1e-3}),
    case("kasa_config", target_modules=["lin0"], kasa_config={}),
    case("monteclora_config", target_modules=["lin0"], monteclora_config={"num_samples": 2}),
    case("monteclora_config", target_modules=["lin0"], monteclora_config={}),
    case("trainable_token_indices", target_modules=["lin0"], trainable_token_indices={"emb": [0, 10]}),
    case("target_parameters", target_parameters=["lin0.weight"]),
    case("target_parameters", target_modules=["lin0"], target_parameters=["lin1.weight"]),
    case("use_bdlora", target_modules=["lin0"], use_bdlora={"target_modules_bd_a": ["lin0"], "match_strict": False}),
    case("alora_invocation_tokens", target_modules=["lin0"], alora_invocation_tokens=[1, 2]),
    case("arrow_config", target_modules=["lin0"], arrow_config={"top_k": 2}),
    case("layer_replication", target_modules=["lin0"], layer_replication=[[0, 2], [1, 2]]),
    case(target_modules=["lin0"], use_qalora=True, qalora_group_size=5),
    case("use_dora", target_modules=["lin0"], use_qalora=True, qalora_group_size=5, use_dora=True),
    case("ensure_weight_tying", target_modules=["lin0"], ensure_weight_tying=True),
    case("init_lora_weights", target_modules=["lin0"], init_lora_weights="corda", corda_config={"corda_method": "ipm"}),
    case("init_lora_weights", target_modules=["lin0"], init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
    case("init_lora_weights", target_modules=["lin0"], init_lora_weights="lora_ga"),
    case("lora_bias", target_modules=["lin0"], lora_bias=True, use_dora=True),
    case("init_lora_weights", target_modules=["lin0"], lora_bias=True, init_lora_weights="gaussian"),
    case("layers_to_transform", target_modules="lin0", layers_to_transform=[0]),
    case("layers_pattern", target_modules=["lin0"], layers_pattern=["layers"]),
]

lines = ",\n".join(json.dumps(one) for one in CASES)
pathlib.Path(__file__).with_name("peft_options.json").write_text('{"cases": [\n' + lines + "\n]}\n")
