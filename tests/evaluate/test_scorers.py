import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from e2ray.config.data import ByteLevelBpe
from e2ray.data.encoder import Encoder
from e2ray.data.tokenizer import train_byte_level_bpe
from e2ray.evaluate.scorers import best_of, contained, goes_on

TEXTS = ["the dog sat on the log_book in 1813, 1914 and 2020: the x-ray of a 5th dog's éclair", "Москва 24"] * 20


def byte_level():
    return train_byte_level_bpe(TEXTS, ByteLevelBpe(vocab_size=400))


def spaces_as_letters():
    """As Llama 2, which takes the space before a text away again when it decodes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*TEXTS, "0123456789"], trainer)
    backend.add_tokens(["<0x37>"])  # the byte of a 7
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def pieces_of_words():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    pieces = ["[UNK]", "[SEP]", "0", "5", "##5", "dog", "##dog", ".", "##.", "'"]
    backend.model = models.WordPiece(vocab={piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")


def going_on(tokenizer, text="12"):
    encoder = Encoder(tokenizer.backend_tokenizer.to_str(), prefix=(), end=tokenizer.eos_token_id)
    tokens = encoder.backend.encode(text, add_special_tokens=False).ids
    return {piece for piece, token in tokenizer.get_vocab().items() if goes_on(encoder, tokens, token)}


@pytest.mark.parametrize("text", ["12", "1813, 2020", "the dog"])
@pytest.mark.parametrize("make", [byte_level, spaces_as_letters])
def test_a_token_goes_on_where_it_is_glued_to_the_word_before(make, text):
    tokenizer = make()
    found = going_on(tokenizer, text)
    space = "Ġ" if make is byte_level else "\N{LOWER ONE EIGHTH BLOCK}"
    glued = {piece for piece in tokenizer.get_vocab() if piece[0] in "0123456789abdeghiklnorstxy_"}
    assert {"0", "7", "d", "og", "_"} <= glued  # else the vocabulary proves nothing
    assert any(piece.startswith(f"{space}d") for piece in tokenizer.get_vocab())
    assert glued <= found
    assert not {".", ",", ":", "-", space, tokenizer.eos_token} & found
    assert not {piece for piece in found if piece.startswith(space)}


def test_a_byte_that_is_a_digit_goes_on():
    assert "<0x37>" in going_on(spaces_as_letters())


def test_only_pieces_inside_a_word_go_on_where_others_begin_one():
    assert going_on(pieces_of_words(), "5") == {"##5", "##dog"}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The numbers are 123, 456 and 789.", 1.0),
        ("789 456 123", 1.0),
        ("123, 456", 2 / 3),
        ("123 123 123", 1 / 3),
        ("1234567890", 0.0),
        ("0123 4560 x789", 0.0),
        ("", 0.0),
    ],
)
def test_references_are_held_as_whole_words_in_any_order(text, share):
    assert contained(text, ["123", "456", "789"]) == pytest.approx(share)


def test_case_and_white_space_say_nothing():
    assert contained("The  OLD\nHouse", ["old house"]) == 1
    assert contained("STRASSE", ["straße"]) == 1


def test_signs_in_a_reference_are_letters_not_patterns():
    assert contained("axb", ["a.b"]) == 0
    assert contained("a.b", ["a.b"]) == 1
    assert contained("(x)", ["(x)"]) == 1
    assert contained("anything", [".*"]) == 0


def test_one_of_several_references_is_enough_for_an_answer():
    assert best_of("in Paris, I think", ["London", "paris"]) == 1
    assert best_of("in Parisian streets", ["London", "paris"]) == 0
    assert best_of("in Paris", []) == 0


def test_an_empty_reference_would_be_held_by_every_text():
    with pytest.raises(ValueError, match="references must not be empty"):
        contained("text", [])
    with pytest.raises(ValueError, match="a reference must say something"):
        contained("text", ["  "])
