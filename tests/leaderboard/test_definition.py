import pytest
import yaml

from robustsuite.errors import InputError
from robustsuite.leaderboard.definition import load_definition, protocol_sha256

CLOSED = {"training_data": "d" * 64, "arch": "small-cnn", "epochs": 30}
TRAINED = {"name": "pgd-at", "data": {"name": "digits", "fingerprint": "d" * 64}, "settings": {"epochs": 30}}


def refused(define, tmp_path, **parts):
    with pytest.raises(InputError) as error:
        load_definition(define(tmp_path, **parts))
    assert str(tmp_path / "boards" / "toy.yaml") in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"treat": {}}, "unknown key 'treat'. Did you mean 'threat'?"),
        ({"data": {}}, "the key 'data.name' is missing"),
        ({"data": {"name": "digits", "fingerprint": "abc"}}, "'data.fingerprint'"),
        ({"data": {"name": "digits"}}, "needs threat.eps, data.fingerprint and protocol"),
        ({"threat": {"norm": "Linf"}}, "needs threat.eps"),
        ({"threat": {"norm": "L7", "eps": "1"}}, "must be one of Linf, L2, L1"),
        ({"threat": {"norm": "Linf", "eps": "much"}}, "threat.eps: eps 'much' is not a number"),
        ({"threat": {"norm": "Linf", "eps": "1e9999999"}}, "out of range"),
        ({"threat": {"norm": "Linf", "eps": True}}, "'threat.eps'"),
        ({"division": "closed"}, "a closed division needs 'closed'"),
        ({"columns": ["Rank", "Glory"]}, "there is no column 'Glory'; there are Rank, "),
        ({"ranking": {"rule": "taste"}}, "'ranking.rule': input should be 'verified' or 'reported', got 'taste'"),
        ({"ranking": {"minimum_level": 4}}, "'ranking.minimum_level'"),
        ({"protocol": {"name": "standard"}}, "the key 'protocol.version' is missing"),
        ({"id": "other"}, "'id' is 'other', but the file's name says 'toy'"),
        ({"id": "../toy"}, "must be a plain file name"),
    ],
)
def test_errors_name_file_key_and_what_was_expected(define, tmp_path, parts, words):
    assert words in refused(define, tmp_path, **parts)


@pytest.mark.parametrize(
    "text", ["{", "- a", "42", "", "a: !!python/object/apply:os.system [true]", "\x00", "a: &a [*a]"]
)
def test_what_is_no_definition_at_all(tmp_path, text):
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"toy\.yaml"):
        load_definition(path)


def test_a_huge_file_is_not_parsed(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("#" * (1 << 19))
    with pytest.raises(InputError, match="larger than"):
        load_definition(path)


@pytest.mark.parametrize("board", ["README", "con", "a/b", ".hidden", "x" * 200, "a b"])
def test_ids_are_file_names_everywhere(tmp_path, define, board):
    body = yaml.safe_load(define(tmp_path).read_text())
    path = tmp_path / "boards" / "it.yaml"
    path.write_text(yaml.safe_dump(body | {"id": board}))
    with pytest.raises(InputError, match="must be a plain file name"):
        load_definition(path)


def test_eps_is_exact_however_it_is_written(tmp_path, define, make_record):
    for eps in (0.15, "0.15", "3/20"):
        board = load_definition(define(tmp_path, threat={"norm": "Linf", "eps": eps}))
        assert board.eps == "0.15"
        assert board.misfits(make_record(threat="Linf:0.15")) == []
        assert board.misfits(make_record(threat="Linf:0.150001")) == ["eps: the board wants 0.15, the run has 0.150001"]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"fingerprint": "e" * 64}, "data fingerprint"),
        ({"threat": "L2:0.15"}, "norm: the board wants Linf, the run has L2"),
        ({"protocol": "standard+"}, "protocol: the board wants standard version 1, the run has standard+ version 1"),
        ({"version": 2}, "protocol"),
    ],
)
def test_what_does_not_fit(tmp_path, define, make_record, facts, words):
    board = load_definition(define(tmp_path))
    assert board.misfits(make_record()) == []
    (said,) = board.misfits(make_record(**facts))
    assert words in said


def test_a_pinned_protocol_is_told_from_one_of_the_same_name(tmp_path, define, make_record):
    honest, forged = make_record(), make_record(steps=1)
    pinned = {"name": "standard", "version": 1, "sha256": protocol_sha256(honest.request.protocol)}
    board = load_definition(define(tmp_path, protocol=pinned))
    assert board.misfits(honest) == []
    assert "sha256 of the protocol's stages" in board.misfits(forged)[0]


def test_the_closed_division(tmp_path, define, make_record):
    closed = load_definition(define(tmp_path, division="closed", closed=CLOSED))
    marked = load_definition(define(tmp_path, closed=CLOSED))
    inside = make_record(defense=TRAINED)
    assert closed.misfits(inside) == marked.outside(inside) == []
    for defense, arch, words in (
        (TRAINED, "resnet18", "architecture: the board wants small-cnn, the run has resnet18"),
        (None, "small-cnn", "training data"),
        (TRAINED | {"data": {"fingerprint": "0" * 64}}, "small-cnn", "training data"),
        (TRAINED | {"data": "junk"}, "small-cnn", "training data"),
        (TRAINED | {"settings": {"epochs": 31}}, "small-cnn", "epochs: the board wants 30, the run has 31"),
    ):
        record = make_record(defense=defense, arch=arch)
        assert any(words in said for said in marked.outside(record))
        assert all(said.startswith("closed division: ") for said in closed.misfits(record))
        assert closed.misfits(record)
        assert marked.misfits(record) == []
    assert load_definition(define(tmp_path)).outside(inside) == ["the board has no closed division"]


def test_training_data_by_name(tmp_path, define, make_record):
    board = load_definition(define(tmp_path, closed={"training_data": "digits", "arch": "small-cnn"}))
    assert board.outside(make_record(defense=TRAINED)) == []


def test_reported_boards_need_neither_norm_nor_fingerprint(tmp_path, define):
    path = define(
        tmp_path, data={"name": "cifar10"}, threat={"norm": "corruptions"}, protocol=None, ranking={"rule": "reported"}
    )
    board = load_definition(path)
    assert (board.eps, board.ranking.rule) == ("", "reported")
