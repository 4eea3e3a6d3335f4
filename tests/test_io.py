"""tg.io: files that others read too, written whole or not at all, believed only when checked."""

import json
import stat

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinygrad_ml as tg
from tinygrad_ml import io
from tinygrad_ml.io import FormatError

DTYPES = [d for d in io.NAMES if d != ml_dtypes.bfloat16]
fuzz = settings(max_examples=8 * settings.default.max_examples)  # each takes 2 ms

arrays_of_any_kind = hnp.arrays(
    st.sampled_from(DTYPES),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
files_of_arrays = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter("__metadata__".__ne__),
    arrays_of_any_kind,
    max_size=5,
)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def pack(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# --- what is written is read


@given(files_of_arrays, st.dictionaries(st.text("ab é", max_size=4), st.text("xyz", max_size=4)))
def test_what_is_saved_is_loaded(tmp_path_factory, arrays, metadata):
    path = tmp_path_factory.mktemp("io") / "a.safetensors"
    io.save(path, arrays, metadata)
    loaded = io.load(path)
    assert loaded.keys() == arrays.keys()
    assert all(same(loaded[name], arrays[name]) for name in arrays)
    assert io.load_metadata(path) == metadata


@given(files_of_arrays)
def test_the_safetensors_package_reads_our_files_and_we_read_its(tmp_path_factory, arrays):
    ours, theirs = (tmp_path_factory.mktemp("io") / name for name in ("ours", "theirs"))
    io.save(ours, arrays)
    read = safetensors.numpy.load_file(ours)
    assert read.keys() == arrays.keys()
    assert all(same(read[name], arrays[name]) for name in arrays)

    safetensors.numpy.save_file(arrays, theirs)
    assert all(same(x, arrays[name]) for name, x in io.load(theirs).items())


def test_bfloat16_keeps_its_bits_and_its_name(tmp_path):
    x = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)  # every one there is, NaNs too
    io.save(tmp_path / "a", {"x": x.reshape(256, 256)})
    loaded = io.load(tmp_path / "a")["x"]
    assert loaded.dtype == ml_dtypes.bfloat16
    assert (loaded.view(np.uint16).ravel() == x.view(np.uint16)).all()
    with safetensors.safe_open(tmp_path / "a", "np") as file:
        assert file.get_slice("x").get_dtype() == "BF16"


@pytest.mark.parametrize("layout", ["transposed", "reversed", "every other", "big-endian"])
def test_the_layout_in_memory_does_not_matter(tmp_path, layout):
    x = np.arange(24.0).reshape(4, 6)
    views = {"transposed": x.T, "reversed": x[::-1], "every other": x[:, ::2]}
    view = views.get(layout, x.astype(">f8"))
    io.save(tmp_path / "a", {"x": view})
    assert np.array_equal(io.load(tmp_path / "a")["x"], view)


def test_tensors_and_numbers_are_saved_as_arrays(tmp_path):
    io.save(tmp_path / "a", {"w": tg.tensor([1.0, 2.0], requires_grad=True), "step": 7})
    loaded = io.load(tmp_path / "a")
    assert loaded["w"].tolist() == [1.0, 2.0]
    assert loaded["w"].dtype == np.float32
    assert loaded["step"] == 7
    assert loaded["step"].shape == ()


def test_loading_maps_the_file_and_cannot_write_to_it(tmp_path):
    io.save(tmp_path / "a", {"x": np.zeros(1000)})
    x = io.load(tmp_path / "a")["x"]
    assert not x.flags.owndata
    assert not x.flags.writeable
    assert type(x) is np.ndarray
    leaf = tg.tensor(x[:2], requires_grad=True)
    assert leaf.assign_(np.ones(2)).data.tolist() == [1, 1]


def test_arrays_are_aligned_whatever_stands_before_them(tmp_path):
    io.save(tmp_path / "a", {"a": np.ones(3, np.int8), "b": np.ones(2), "c": np.ones((), np.int16)})
    assert all(x.flags.aligned and not x.flags.owndata for x in io.load(tmp_path / "a").values())
    header = {"a": entry("I8", (1,), (0, 1)), "b": entry("F64", (1,), (1, 9))}
    (tmp_path / "b").write_bytes(pack(header, b"\1" + np.float64(0.5).tobytes()))
    b = io.load(tmp_path / "b")["b"]
    assert b.flags.aligned
    assert b.tolist() == [0.5]


# --- written whole or not at all


def write_half_of_it(path):
    with io.replacing(path) as file:
        file.write(b"half of it")
        file.write("no bytes")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    io.save(path, {"x": np.ones(2)})
    with pytest.raises(TypeError):
        write_half_of_it(path)
    assert io.load(path)["x"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arrays", "metadata", "error"),
    [
        ({"x": np.ones(2, complex)}, None, TypeError),
        ({"x": np.array([object()])}, None, TypeError),
        ({"x": "text"}, None, TypeError),
        ({1: np.ones(2)}, None, TypeError),
        ({"\ud800": np.ones(2)}, None, ValueError),
        ({"__metadata__": np.ones(2)}, None, ValueError),
        ({"x": np.ones(2)}, {"step": 3}, TypeError),
    ],
)
def test_what_the_format_does_not_have_is_refused_before_writing(tmp_path, arrays, metadata, error):
    with pytest.raises(error):
        io.save(tmp_path / "a", arrays, metadata)
    assert not list(tmp_path.iterdir())


def test_saving_over_a_mapped_file_leaves_the_mapped_arrays_alone(tmp_path):
    io.save(tmp_path / "a", {"x": np.zeros(1000)})
    x = io.load(tmp_path / "a")["x"]
    io.save(tmp_path / "a", {"x": x + 1})
    assert x.sum() == 0
    assert io.load(tmp_path / "a")["x"].sum() == 1000


def test_a_link_stays_a_link_and_a_file_gets_the_usual_rights(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    io.save(tmp_path / "link", {"x": np.ones(2)})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").exists()

    def mode(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert mode("target") == mode("plain")


# --- believed only when checked

BAD = {
    "empty": (b"", "too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "a header longer than the file": (pack({}, length=1000), "offset 0: the header is said"),
    "the longest header": (pack({}, length=2**64 - 1), "offset 0: the header is said"),
    "no JSON": (pack(b"not json"), "no valid JSON"),
    "no UTF-8": (pack(b'{"\xff": 1}'), "no valid JSON"),
    "nested without end": (pack(b"[" * 100_000), "no valid JSON"),
    "a list": (pack([]), "is list, not a dict"),
    "an empty header": (pack(b""), "no valid JSON"),
    "one name twice": (pack(b'{"x": 1, "x": 2}'), "the name 'x' comes twice"),
    "metadata that are no texts": (pack({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata that are a list": (pack({"__metadata__": ["a"]}), "__metadata__"),
    "an entry that is a number": (pack({"x": 3}), "'x'.*has not just"),
    "an entry without a shape": (pack({"x": {"dtype": "F32"}}), "'x'.*has not just"),
    "an unknown dtype": (pack({"x": entry("F31")}, bytes(8)), "'x'.*dtype 'F31'"),
    "a dtype that is a list": (pack({"x": entry(["F32"])}, bytes(8)), "'x'.*dtype"),
    "a negative count": (pack({"x": entry(shape=(-1, -2))}, bytes(8)), "'x'.*no list of counts"),
    "half a count": (pack({"x": entry(shape=(2.0,))}, bytes(8)), "'x'.*no list of counts"),
    "a count that is true": (pack({"x": entry("I8", (True,), (0, 1))}, b"1"), "no list of counts"),
    "too many axes": (pack({"x": entry(shape=(1,) * 65)}, bytes(4)), "no list of counts"),
    "a count beyond numpy": (pack({"x": entry(shape=(2**63, 0), offsets=(0, 0))}), "no list"),
    "zero of too many": (pack({"x": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}), "'x'"),
    "offsets beyond the file": (pack({"x": entry(offsets=(0, 16))}, bytes(8)), "'x'.*do not lie"),
    "offsets backwards": (pack({"x": entry(offsets=(8, 0))}, bytes(8)), "'x'.*do not lie"),
    "one offset": (pack({"x": entry(offsets=(8,))}, bytes(8)), "'x'.*not two counts"),
    "another size": (pack({"x": entry(shape=(3,))}, bytes(8)), "'x' at offset 0: 8 bytes, but"),
    "a hole": (pack({"x": entry(offsets=(4, 12))}, bytes(12)), "'x' at offset 4 leaves a hole"),
    "an overlap": (
        pack({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)),
        "'y' at offset 4 overlaps",
    ),
    "bytes that nobody owns": (pack({"x": entry()}, bytes(9)), "ends at offset 8, the data at 9"),
    "a third truth": (pack({"x": entry("BOOL", (2,), (0, 2))}, b"\1\7"), "'x' at offset 1: byte 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_file_is_a_format_error_that_says_where(tmp_path, case):
    content, message = BAD[case]
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=f"bad.safetensors: .*{message}"):
        io.load(tmp_path / "bad.safetensors")


def test_reading_a_file_that_is_not_there_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        io.load(tmp_path / "nothing")


def load_or_refuse(path, content):
    """Whatever the bytes: arrays that lie in the file, or a FormatError."""
    path.write_bytes(content)
    try:
        loaded = io.load(path)
    except FormatError:
        return
    assert sum(x.nbytes for x in loaded.values()) <= len(content)
    for x in loaded.values():
        x.tobytes()  # every byte can be read


GOOD = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "a"
    io.save(path, GOOD, {"kind": "test"})
    return path.read_bytes()


def test_a_file_cut_anywhere_is_refused(good, tmp_path):
    for end in range(len(good)):
        (tmp_path / "a").write_bytes(good[:end])
        with pytest.raises(FormatError):
            io.load(tmp_path / "a")


@fuzz
@given(st.data())
def test_changed_bytes_never_do_worse_than_a_format_error(good, tmp_path_factory, data):
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    load_or_refuse(tmp_path_factory.getbasetemp() / "fuzzed", bytes(content))


numbers = st.integers(-2, 40) | st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**400])
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
lying_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*io.DTYPES, "F8_E4M3", "C64", "f32"]) | anything,
        "shape": st.lists(numbers, max_size=4) | anything,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | anything,
    }
)


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]), lying_entries | anything, max_size=3
    ),
    st.binary(max_size=40),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_a_lying_header_never_does_worse_than_a_format_error(
    tmp_path_factory, header, data, length
):
    load_or_refuse(tmp_path_factory.getbasetemp() / "lying", pack(header, data, length))
