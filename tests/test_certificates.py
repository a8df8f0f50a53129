import numpy as np
import pytest

from covkeras.certification import Certificates, average_certified_radius, certified_accuracy, read_certificates
from covkeras.certification.logs import CertificateFile


def certificates():
    parts = [(0, 0.5, 0.8, 110, 0.1), (1, 0.7, 0.9, 110, 0.2), (-1, 0.0, 0.4, 110, 0.3), (2, 0.3, 0.7, 110, 0.4)]
    return Certificates.concatenate(Certificates.single(*p) for p in parts)


def test_average_certified_radius_and_accuracy_by_hand():
    labels = np.array([0, 1, 1, 0])  # right, right, abstained, wrong
    assert average_certified_radius(certificates(), labels) == pytest.approx((0.5 + 0.7) / 4)
    assert certified_accuracy(certificates(), labels, [0.0, 0.5, 0.51, 0.7, 0.71]).tolist() == [0.5, 0.5, 0.25, 0.25, 0]


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\)"):
        average_certified_radius(certificates(), [0, 1])


@pytest.mark.parametrize(
    "labels, error, message",
    [
        (["a", "b", "c", "d"], TypeError, "class numbers.*class_names.index"),
        ([b"0", b"1", b"2", b"3"], TypeError, "class numbers"),
        (np.array([0, 1, None, 2], object), TypeError, "class numbers"),
        ([0, 1, 1, 0.5], TypeError, "class numbers.*got float64"),
        ([0, 1, np.nan, 0], TypeError, "class numbers"),
        ([0, 1, -1, 2], ValueError, "labels must be at least 0 .-1 stands for an abstention., got -1"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(labels, error, message):
    """Compared with classes they are wrong throughout, or right where the classifier abstained."""
    for judge in (average_certified_radius, lambda c, y: certified_accuracy(c, y, [0.0, 0.5])):
        with pytest.raises(error, match=message):
            judge(certificates(), labels)


def test_labels_that_are_whole_numbers_of_another_type_are_class_numbers():
    labels = np.array([0, 1, 1, 0])
    for given in (labels.tolist(), labels.astype(float), labels.astype(np.uint8), labels == 1):
        assert average_certified_radius(certificates(), given) == average_certified_radius(certificates(), labels)


def test_records_survive_the_file_bit_for_bit(tmp_path):
    radius = np.nextafter(0.1 + 0.2, 0)
    with CertificateFile(tmp_path / "c.tsv") as file:
        file.append(7, 3, Certificates.single(3, radius, 0.9999999999999, 10_100, 1.25))
    index, labels, c = read_certificates(tmp_path / "c.tsv")
    assert (index[0], labels[0], c.label[0], c.radius[0], c.p_lower[0]) == (7, 3, 3, radius, 0.9999999999999)
    header = (tmp_path / "c.tsv").read_text().splitlines()[0]
    assert header.split("\t")[:6] == ["idx", "label", "predict", "radius", "correct", "time"]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "c.tsv"
    with CertificateFile(path) as file:
        for i in range(3):
            file.append(i, 0, Certificates.single(0, 0.5, 0.9, 110, 0.1))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with CertificateFile(path) as file:
            assert file.done == set(range(whole[:cut].count(b"\n") - 1))
            for i in sorted(set(range(3)) - file.done):
                file.append(i, 0, Certificates.single(0, 0.5, 0.9, 110, 0.1))
        assert path.read_bytes() == whole


def test_cohens_files_in_both_time_formats(tmp_path):
    path = tmp_path / "cohen.tsv"
    path.write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.523\t1\t0:00:12.5\n20\t8\t-1\t0.0\t0\t15.25\n"
        "40\t8\t8\t0.1\t1\t1 day, 1:00:00\n"
    )
    index, labels, c = read_certificates(path)
    assert index.tolist() == [0, 20, 40] and labels.tolist() == [3, 8, 8] and c.label.tolist() == [3, -1, 8]
    assert c.seconds.tolist() == [12.5, 15.25, 90_000.0] and np.isnan(c.p_lower).all()


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "bad.tsv"
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="not a certification log"):
        read_certificates(path)
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\tx\t0.5\t1\t1\n")
    with pytest.raises(ValueError, match="line 2"):
        read_certificates(path)
