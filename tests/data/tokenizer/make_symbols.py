"""Records what sentencepiece makes of texts, by models with user-defined symbols and with tokens added next to them:
    make_symbols.py SEED MODELS > symbols.json        (symbols.json: seed 0, two models)
The rules of added tokens are those of transformers 4's slow LlamaTokenizer (tokenization_llama.py and the trie of
tokenization_utils.py), written out here with sentencepiece alone. Needs sentencepiece and protobuf."""
import io, json, random, sys

import sentencepiece as sp
from sentencepiece import sentencepiece_model_pb2 as pb

SEED, MODELS = int(sys.argv[1]), int(sys.argv[2])
R = random.Random(SEED)
WORDS = "hippocampal volume is reduced on both sides no acute infarct ventricles and sulci are normal for age mild atrophy of the left amygdala CDR MoCA MTA".split()
SYMBOLS = ["MMSE", "MM", "[SEG]", "MTA-3", "ab", "mild atrophy".replace(" ", "\u2581"), "<|x|>", "a.b*c", "(", "CDR", "éé", "\u2581of"]
ADDED = ["MoCA", "GDS", "W W", "MoC", "[X]", "日本"]


def split(text, words):
    """from the left, the longest word that begins there"""
    out, rest, at = [], "", 0
    while at < len(text):
        found = max((w for w in words if text.startswith(w, at)), key=len, default=None)
        if found is None:
            rest += text[at]; at += 1
            continue
        out += [rest, found]; rest = ""; at += len(found)
    return [p for p in out + [rest] if p]


def processor(proto):
    return sp.SentencePieceProcessor(model_proto=proto.SerializeToString())


def ids(proto, text, added, legacy):
    """[BOS] + ids; `added` is content -> id"""
    if not added:
        return [1] + processor(proto).encode(text)
    if legacy:
        p, parts = processor(proto), split(text, added)
    else:
        q = pb.ModelProto.FromString(proto.SerializeToString()); q.normalizer_spec.add_dummy_prefix = False
        p, parts = processor(q), split("\u2581" + text.replace("\u2581", " "), added)
    return [1] + [i for part in parts for i in ([added[part]] if part in added else p.encode(part))]


def text(symbols, added):
    parts = []
    for _ in range(R.randrange(1, 9)):
        kind = R.randrange(6)
        parts.append(R.choice(WORDS) if kind < 3 else R.choice(symbols or WORDS).replace("\u2581", " ") if kind == 3 else R.choice(added or WORDS)
                     if kind == 4 else R.choice(["é", "21/30", ".", "  ", "\n", "日", "<s>", "x", "MMS", "<0x41>", " "]))
        parts.append(R.choice(["", " ", " ", "  "]))
    return "".join(parts)


models = []
for n in range(MODELS):
    out = io.BytesIO()
    texts = [" ".join(R.choice(WORDS) for _ in range(9)) for _ in range(300)]
    symbols = R.sample(SYMBOLS, R.randrange(2, 7))
    sp.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=out, model_type="bpe", vocab_size=R.randrange(330, 380), byte_fallback=True,
                                  normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
                                  user_defined_symbols=symbols)
    proto = pb.ModelProto.FromString(out.getvalue())
    proto.trainer_spec.ClearField("input"); proto.ClearField("denormalizer_spec")
    size = len(proto.pieces)
    added = {w: size + i for i, w in enumerate(R.sample(ADDED, 3))}
    kinds = [({}, True), (added, True), (added, False)]
    rows = [{"added": a, "legacy": l, "texts": [{"text": t, "ids": ids(proto, t, a, l)} for t in (text(symbols, list(a)) for _ in range(60 if SEED else 15))]}
            for a, l in kinds]
    models.append({"model": proto.SerializeToString().hex(), "symbols": symbols, "rows": rows})
json.dump(models, sys.stdout, ensure_ascii=True)
