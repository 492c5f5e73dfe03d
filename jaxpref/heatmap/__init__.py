"""Which tokens of a real pair entangle its two responses: the token-level heat map of one pair.

    jaxpref heatmap --model smollm2-135m --pairs FILE --id ID --out DIR
    python -m analysis heatmap --results DIR --out DIR

Half a CPU-minute for a pair of 30 + 30 response tokens behind a prompt of 40 under SmolLM2.
"""
