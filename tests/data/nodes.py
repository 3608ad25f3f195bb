"""Two Ray nodes on this machine, one rank on each: what each rank reads of shards, as JSON on standard output."""

import json
import sys

import ray
from ray.cluster_utils import Cluster

STEPS, BATCH = 12, 8


@ray.remote(num_cpus=0.25)
def read(place, rank):
    from e2ray.data.stream import batches

    rows = [
        step.ids.tolist()
        for step in batches(
            place,
            seed=3,
            start_step=2,
            stop_step=2 + STEPS,
            rank=rank,
            num_workers=2,
            batch_sequences=BATCH,
            window=16,
            tokenizer_hash=None,
        )
    ]
    return {"node": ray.get_runtime_context().get_node_id(), "rows": rows}


def main(place, folder):
    memory = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "resources": {"rank0": 1}, "temp_dir": folder}
        | memory,
    )
    cluster.add_node(num_cpus=1, resources={"rank1": 1}, **memory)
    ray.init(address=cluster.address, log_to_driver=False)
    found = ray.get([read.options(resources={f"rank{rank}": 1}).remote(place, rank) for rank in range(2)])
    print(json.dumps({"nodes": len(ray.nodes()), "ranks": found}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
