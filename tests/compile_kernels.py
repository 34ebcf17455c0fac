"""Compile every kernel ahead of time and print a line each: registers, stack, widest global access. No GPU needed.

Run: python tests/compile_kernels.py      (TRITON_INTERPRET must not be set)
"""

import re
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
BLOCK = 1024
MODULES = ("diffuse", "eps_loss", "fourier", "noise", "sampler_step")
TYPES = {"float32": "*fp32", "bfloat16": "*bf16"}


def kernels() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    """(name, kernel, types of its arguments with DATA for the data's, compile-time constants)."""
    # the package's attribute of some of these names is the operation, not the module
    d, e, f, n, s = (import_module(f"fastdiff_kernels.{name}") for name in MODULES)

    sizes, drawn = {"n": "i32", "blocks": "i32"}, {"DRAWN": True, "BLOCK": BLOCK}
    data, vector, key = "DATA", "*fp32", "*i64"
    nothing = {"x_prev_ptr": None, "offset_ptr": None, "u_ptr": None}
    plain = {"NOISY": True, "DRAWN": True, "CLIP": True, "PREV": False, "OFFSET": False, "GUIDED": False, "KEEP": False}
    return [
        ("draw", n.draw_kernel, {"key_ptr": key, "out_ptr": data, **sizes}, {"NORMAL": True, "BLOCK": BLOCK}),
        ("diffuse drawn", d.diffuse_kernel,
         {"x_ptr": data, "gamma_ptr": vector, "noise_ptr": key, "z_ptr": data, **sizes}, drawn),
        ("diffuse given", d.diffuse_kernel,
         {"x_ptr": data, "gamma_ptr": vector, "noise_ptr": data, "z_ptr": data, **sizes}, drawn | {"DRAWN": False}),
        ("diffuse gamma gradient", d.gamma_gradient_kernel,
         {"grad_ptr": data, "x_ptr": data, "noise_ptr": key, "partial_ptr": vector, **sizes}, drawn),
        ("eps_loss", e.squared_error_kernel,
         {"eps_hat_ptr": data, "noise_ptr": key, "partial_ptr": vector, **sizes}, drawn),
        ("eps_loss gradient", e.error_gradient_kernel,
         {"grad_ptr": vector, "eps_hat_ptr": data, "noise_ptr": key, "out_ptr": data, **sizes}, drawn),
        ("fourier", f.fourier_kernel,
         {"z_ptr": data, "out_ptr": data, "channels": "i32", **sizes, "scale_min": "fp32"},
         {"FEATURES": 2, "BLOCK": BLOCK}),
        ("fourier gradient", f.gradient_kernel,
         {"grad_ptr": data, "z_ptr": data, "out_ptr": data, "channels": "i32", **sizes, "scale_min": "fp32"},
         {"FEATURES": 2, "BLOCK": BLOCK}),
        ("sampler_step", s.step_kernel,
         {"z_t_ptr": data, "eps_hat_ptr": data, "row_ptr": vector, "noise_ptr": key, "z_s_ptr": data, "x_hat_ptr": data,
          "clip": "fp32", "w": "fp32", **sizes}, plain | nothing | {"BLOCK": BLOCK}),
        ("sampler_step gradient", s.step_gradient_kernel,
         {"grad_s_ptr": data, "grad_x_ptr": data, "z_t_ptr": data, "eps_hat_ptr": data, "row_ptr": vector,
          "grad_z_ptr": data, "grad_eps_ptr": data, "clip": "fp32", "w": "fp32", **sizes},
         {"offset_ptr": None, "u_ptr": None, "WITH_X": True, "CLIP": True, "OFFSET": False, "GUIDED": False,
          "BLOCK": BLOCK}),
        ("sampler_step with everything", s.step_kernel,
         {"z_t_ptr": data, "eps_hat_ptr": data, "row_ptr": vector, "noise_ptr": data, "x_prev_ptr": data,
          "offset_ptr": data, "u_ptr": data, "z_s_ptr": data, "x_hat_ptr": data, "clip": "fp32", "w": "fp32", **sizes},
         {name: name != "DRAWN" for name in plain} | {"BLOCK": BLOCK}),
        ("sampler_step gradient with everything", s.step_gradient_kernel,
         {"grad_s_ptr": data, "grad_x_ptr": data, "z_t_ptr": data, "eps_hat_ptr": data, "row_ptr": vector,
          "offset_ptr": data, "u_ptr": data, "grad_z_ptr": data, "grad_eps_ptr": data, "clip": "fp32", "w": "fp32",
          **sizes}, {"WITH_X": True, "CLIP": True, "OFFSET": True, "GUIDED": True, "BLOCK": BLOCK}),
        # what 8 × 8 images of one channel, and single numbers, compile to: sizes of 1 become constants
        ("diffuse drawn, small", d.diffuse_kernel,
         {"x_ptr": data, "gamma_ptr": vector, "noise_ptr": key, "z_ptr": data, "n": "i32"},
         {"DRAWN": True, "blocks": 1, "BLOCK": 64}),
        ("eps_loss, single numbers", e.squared_error_kernel,
         {"eps_hat_ptr": data, "noise_ptr": key, "partial_ptr": vector},
         {"DRAWN": True, "n": 1, "blocks": 1, "BLOCK": 16}),
        ("fourier, small", f.fourier_kernel, {"z_ptr": data, "out_ptr": data, "n": "i32", "scale_min": "fp32"},
         {"channels": 1, "blocks": 1, "FEATURES": 2, "BLOCK": 64}),
        ("fourier gradient, small", f.gradient_kernel,
         {"grad_ptr": data, "z_ptr": data, "out_ptr": data, "n": "i32", "scale_min": "fp32"},
         {"channels": 1, "blocks": 1, "FEATURES": 2, "BLOCK": 64}),
    ]  # fmt: skip


def compile_for(target: GPUTarget, kernel, types: dict[str, str], constants: dict[str, object], dtype: str):
    """Machine code for pointers and sizes that are multiples of 16."""
    signature = {}
    for name in kernel.arg_names:
        signature[name] = "constexpr" if name in constants else types[name].replace("DATA", TYPES[dtype])
    aligned = {}
    for position, name in enumerate(kernel.arg_names):
        if signature[name].startswith("*") or (name == "n" and signature[name] == "i32"):
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=target, options={"num_warps": 4})


def resources(compiled, block: int) -> str:
    """Registers, stack and the widest global access, from the machine code."""
    if "cubin" not in compiled.asm:
        found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", compiled.asm["amdgcn"]))
        return f"registers {found['vgpr_count']} stack {found['private_segment_fixed_size']}"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", cubin.name)
        code = _tool("nvdisasm", "-c", cubin.name)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()  # pyright: ignore[reportOptionalMemberAccess]
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]*)", code)
    per_element = sum(name != "NOP" for name in names) / max(1, block / 128)
    widest = max((int(width) for width in re.findall(r"(?:LDG|STG)\.E\S*?\.(64|128)", " ".join(names))), default=32)
    nan = ", keeps NaN" if "max.NaN" in compiled.asm["ptx"] else ""
    return f"registers {registers} stack {stack} {widest}-bit, {per_element:.1f} instructions per element{nan}"


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for label, kernel, types, constants in kernels():
        for dtype in TYPES:
            nvidia = compile_for(GPUTarget("cuda", 90, 32), kernel, types, constants, dtype)
            print(f"{label}: sm_90 {dtype} {resources(nvidia, constants['BLOCK'])}")
        amd = compile_for(GPUTarget("hip", "gfx942", 64), kernel, types, constants, "float32")
        print(f"{label}: gfx942 float32 {resources(amd, constants['BLOCK'])}", flush=True)
