"""llama.cpp through its low-level batch calls, with the contest's own continuous batching (``lines.py``)."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.peers.contestants.lines import Chunk, Lines
from benchmarks.peers.contestants.protocol import Job, Start, serve

BATCH, MICRO_BATCH, SEQUENCES = 2048, 512, 64
PADDING = 256
"""llama.cpp gives a sequence of its own stretch a multiple of so many cells."""


class LlamaCpp:
    cold_by = "a context made anew"

    def __init__(self, start: Start) -> None:
        llama_cpp.llama_backend_init()
        asked = llama_cpp.llama_model_default_params()
        asked.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(start.model.encode(), asked)
        if not self.model:
            raise RuntimeError("llama.cpp does not load the model")
        self.start = start
        self.unified = bool(start.variant.get("unified", True))
        self.most = min(start.variant.get("sequences", SEQUENCES), llama_cpp.llama_max_parallel_sequences())
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.context: Any = None
        self.settings = [
            f"n_batch={BATCH}",
            f"n_ubatch={MICRO_BATCH}",
            f"n_threads={start.threads}",
            f"at most {self.most} sequences",
            f"kv_unified={self.unified}",
            "flash attention",
            "f16 KV",
            "common beginnings computed once and copied by the harness",
        ]

    def cold(self, job: Job) -> None:
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        own = -(-job.longest // PADDING) * PADDING
        wanted = min(self.most, len(job.prompts) + len(job.groups()))
        pool = self.start.kv_tokens
        if self.unified:
            self.cells: int | None = pool or wanted * job.longest
            self.sequences = wanted
            size = self.cells
        else:
            self.cells = None
            self.sequences = wanted if pool is None else min(wanted, pool // own)
            size = self.sequences * own
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch = size, BATCH, MICRO_BATCH
        asked.n_seq_max = self.sequences
        asked.n_threads = asked.n_threads_batch = self.start.threads
        asked.flash_attn_type = 1
        asked.kv_unified = self.unified
        self.context = llama_cpp.llama_init_from_model(self.model, asked)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context of this size")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self._run(Job("warm-up", [list(range(1, 65))], [4]))
        llama_cpp.llama_memory_clear(self.memory, True)

    def answer(self, job: Job) -> list[list[int]]:
        return self._run(job)

    def _run(self, job: Job) -> list[list[int]]:
        lines = Lines(job, BATCH, self.sequences, self.cells)
        while chunks := lines.next():
            for source, target in lines.moves:
                if target is None:
                    llama_cpp.llama_memory_seq_rm(self.memory, source, -1, -1)
                else:
                    llama_cpp.llama_memory_seq_cp(self.memory, source, target, -1, -1)
            lines.moves.clear()
            lines.computed(chunks, self._decode(chunks))
        return lines.answers

    def _decode(self, chunks: list[Chunk]) -> list[int]:
        batch, row, emitting = self.batch, 0, []
        for sequence, ids, position, emits in chunks:
            for offset, token in enumerate(ids):
                batch.token[row] = token
                batch.pos[row] = position + offset
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence.id
                batch.logits[row] = 0
                row += 1
            if emits:
                batch.logits[row - 1] = 1
                emitting.append(row - 1)
        batch.n_tokens = row
        if status := llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode answered {status}")
        return [self._best(row) for row in emitting]

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        values = np.ctypeslib.as_array(
            ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocabulary,)
        )
        return int(values.argmax())


if __name__ == "__main__":
    serve(LlamaCpp)
