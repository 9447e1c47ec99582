import pytest

from robustsuite.leaderboard.whereabouts import absolute_paths, file_names, without_folders


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/ann/nets/net.pt", "net.pt"),
        ("nets/net.pt", "net.pt"),
        ("../net.pt", "net.pt"),
        ("~/nets/net.safetensors", "net.safetensors"),
        (r"C:\Users\ann\net.pt", "net.pt"),
        ("py:/home/ann/factory.py:make", "py:factory.py:make"),
        ("py:package.module:make", "py:package.module:make"),
        ("robustbench:Carmon2019Unlabeled@cifar10/Linf", "robustbench:Carmon2019Unlabeled@cifar10/Linf"),
        ("Linf:8/255", "Linf:8/255"),
        ("125.3/255,123/255,113.9/255", "125.3/255,123/255,113.9/255"),
        ("range:5:15", "range:5:15"),
        ("weights=/home/ann/net.pt", "weights=net.pt"),
        ("eps=8/255", "eps=8/255"),
        ("net.pt", "net.pt"),
        ("digits", "digits"),
        ("", ""),
    ],
)
def test_file_names_for_paths(text, published):
    assert file_names(text) == published
    assert file_names({"deep": [text, 3, None]}) == {"deep": [published, 3, None]}
    assert list(absolute_paths({"a": [published]})) == []


def test_a_record_without_folders_is_the_same_run(make_record):
    record = make_record(
        reference="/home/ann/nets/net.pt", source="/data/x.npy", load_options={"reference": "/home/ann/nets/net.pt"}
    )
    command = "robustsuite eval '/home/ann/my nets/net.pt' --mean 125.3/255,1,1 --data /data/x.npy --threat Linf:8/255"
    record = record.model_copy(update={"host": record.host.model_copy(update={"command": command})}).sealed()
    assert len(list(absolute_paths(record.model_dump(mode="json")))) == 4
    clean = without_folders(record)
    assert clean.run_key == record.run_key == clean.request.run_key
    assert clean.request.model.reference == "net.pt"
    assert clean.request.model.load_options == {"reference": "net.pt"}
    assert clean.request.data.source == "x.npy"
    assert clean.host.command == "robustsuite eval net.pt --mean 125.3/255,1,1 --data x.npy --threat Linf:8/255"
    assert clean == clean.sealed()
    assert list(absolute_paths(clean.model_dump(mode="json"))) == []


@pytest.mark.parametrize(
    "text",
    ["/etc/passwd", "see /home/ann/x", "file:///x/y", r"C:\x", "~/x/y", "--weights=/a/b", r"\\server\share", "(/a/b)"],
)
def test_absolute_paths_are_found(text):
    assert list(absolute_paths({"a": {"b": ["fine", text]}})) == [("a.b.1", text)]
    assert [key for key, _ in absolute_paths({text: 1})] == [text]


@pytest.mark.parametrize("text", ["8/255", "and/or", "N/A", "https://example.org/x/y", "a ratio of 1/2", "L2 / Linf"])
def test_other_slashes_are_left_alone(text):
    assert list(absolute_paths([text])) == []
