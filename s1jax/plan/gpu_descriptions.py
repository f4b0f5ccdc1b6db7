"""Descriptions of H100 SXM and H200 as text protos, which XLA's GPU compiler needs to compile without the GPU.

Both are chips of the same kind (compute capability 9.0, 132 cores); an H200 has more and faster memory.
"""

_TEMPLATE = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""

TEXT = {
    "h100": _TEMPLATE.format(name="NVIDIA H100 80GB HBM3", memory=84978434048, bandwidth=3352320000000),
    "h200": _TEMPLATE.format(name="NVIDIA H200", memory=150754820096, bandwidth=4800000000000),
}
