import numpy as np, gguf
def tiny_gguf(path):
    luck = np.random.default_rng(0)
    w = gguf.GGUFWriter(path, "llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *map(chr, range(33, 127)), "\u2581"]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256, *[gguf.TokenType.NORMAL] * 95]
    d, ff = 32, 64
    w.add_context_length(2048); w.add_embedding_length(d); w.add_block_count(1); w.add_feed_forward_length(ff)
    w.add_head_count(2); w.add_head_count_kv(2); w.add_layer_norm_rms_eps(1e-5); w.add_rope_dimension_count(16); w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("llama"); w.add_token_list(tokens); w.add_token_scores([0.0] * len(tokens)); w.add_token_types(kinds)
    w.add_bos_token_id(1); w.add_eos_token_id(2); w.add_unk_token_id(0)
    w.add_chat_template("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: ")
    new = lambda *shape: luck.normal(size=shape, scale=0.3).astype(np.float32)
    w.add_tensor("token_embd.weight", new(len(tokens), d)); w.add_tensor("output.weight", new(len(tokens), d))
    one = np.ones(d, np.float32)
    w.add_tensor("output_norm.weight", one)
    for n, a in {"attn_norm": one, "ffn_norm": one, "attn_q": new(d, d), "attn_k": new(d, d), "attn_v": new(d, d), "attn_output": new(d, d), "ffn_gate": new(ff, d), "ffn_up": new(ff, d), "ffn_down": new(d, ff)}.items():
        w.add_tensor(f"blk.0.{n}.weight", a)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

