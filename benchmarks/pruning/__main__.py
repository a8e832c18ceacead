"""What pruning costs while a model trains, and what it leaves: latency, bytes, memory of a selection.

    python -m benchmarks.pruning [--quick] [--only PART...] [--json FILE]

Unless said otherwise a BERT in the shape of MiniLM (384 wide, 6 layers, 12 heads, 30522 words; 22.7M parameters), random weights, rows of 64 tokens.

mask_step           a training step (the engine's: forward, loss, backward, clipping, fused AdamW; 32 rows) in which all linears of the body have a mask of
                    their elements, half of them zero, against the dense one. Goal: <= 1.03. _lines: masks of whole outputs, as neurons and heads get them.
                    _movement: with what the movement score adds to its sums in each step.
latency_cut         half the neurons and a third of the heads cut out, against dense; one row. Goal: <= 0.65. Floor: the share of its multiplications.
                    _32: 32 rows.
latency_layers      every second layer, in the same way. Goal: <= 0.55.
latency_blocks      a block-sparse linear, nine tenths of its 32x32 blocks zero, 1024 features in and out, against the dense product. Goal: < 1.
file_cut            bytes of the weight files of the cut model, against dense. Goal: <= the kept share of the parameters (the floor) + 2 %. file_layers: the same.
file_sparse         nine tenths of the linears' weights zero, of a model that reads bytes (261 words): all of the weight file. Goal: <= 0.20. Floor: entropy of the
                    positions, values, and the dense rest. _linears: of the linears alone. _minilm: with 30522 words, whose embeddings stay dense.
select_memory       what a global selection over the linears of a model of 19M weights adds to a process at its highest; two ranks under ZeRO-3. Peer: the bytes of
                    the largest of these parameters. Goal: <= 1. _1: in one process. round_memory: a whole round on two ranks, with masks made and written.
select_time         of that selection in one process, its scores computed in each pass. Peer: torch.kthvalue on all scores side by side. Goal: <= 2.
torch_pruning       scores, plan and cut of half the neurons, against Torch-Pruning 1.6.1 on the same model, whose outputs are compared. Goal: <= 1.
                    _latency: one row through what came out. The peer is installed below the cache, in an environment of its own.

Numbers are CPU time of a single thread, medians of interleaved rounds; their ratio is the median of the rounds' ratios. Not measured: GPUs, several threads,
runtimes other than PyTorch, what is left of accuracy (docs/evidence.md).
"""

from benchmarks.common import one_thread, run_parts

one_thread()


from benchmarks.pruning import memory, peer, results, steps

PARTS = {
    "steps": steps.measure,
    "latencies": results.latencies,
    "blocks": results.blocks,
    "files": results.files,
    "memory": memory.measure,
    "peer": peer.measure,
}


def main(argv: list[str] | None = None) -> None:
    run_parts(__doc__, PARTS, argv)


if __name__ == "__main__":
    main()
