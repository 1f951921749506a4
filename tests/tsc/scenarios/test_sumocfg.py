import pytest

from tsc.errors import ScenarioError
from tsc.scenarios.sumocfg import read_sumocfg


@pytest.fixture
def write(tmp_path):
    (tmp_path / "a.net.xml").write_text("<net/>")

    def write_sumocfg(body):
        path = tmp_path / "a.sumocfg"
        path.write_text(f'<configuration><input><net-file value="a.net.xml"/></input>{body}</configuration>')
        return path

    return write_sumocfg


def test_options_that_shape_traffic_become_words_and_outputs_do_not(write, tmp_path):
    (tmp_path / "w.xml").write_text("<meandata/>")
    config = read_sumocfg(
        write(
            '<input><weight-files value="w.xml"/></input>'
            '<output><tripinfo value="t.xml"/></output><report><verbose value="true"/></report>'
            '<processing><lateral-resolution value="0.8"/><route-steps value="100"/><scale value="1.5"/></processing>'
            '<routing><device.routing.period value="60"/><device.rerouting.output value="r.xml"/></routing>'
            '<emissions><device.emissions.probability value="0.5"/></emissions>'
            '<toc_device><device.toc.file value="toc.xml"/></toc_device>'
            '<gui_only><delay value="100"/><osg-view value="true"/></gui_only>'
        )
    )
    assert config.traffic_options == (
        *("--weight-files", str(tmp_path / "w.xml")),
        *("--lateral-resolution", "0.8"),
        *("--scale", "1.5"),
        *("--device.rerouting.period", "60"),
    )


def test_a_flat_sumocfg_with_short_names_reads_as_a_long_one(tmp_path):
    (tmp_path / "a.net.xml").write_text("<net/>")
    path = tmp_path / "a.sumocfg"
    path.write_text('<c><n value="a.net.xml"/><e v="100"/><log value="l.txt"/><max-depart-delay value="9"/></c>')
    config = read_sumocfg(path)
    assert (config.net_file, config.end_s) == (tmp_path / "a.net.xml", 100.0)
    assert config.traffic_options == ("--max-depart-delay", "9")


@pytest.mark.parametrize(
    ("text", "seconds"), [("25200", 25200.0), ("0.5", 0.5), ("7:00:10", 25210.0), ("1:00:00:01", 86401.0), ("-1", None)]
)
def test_times_are_read_as_sumo_reads_them(write, text, seconds):
    assert read_sumocfg(write(f'<time><end value="{text}"/></time>')).end_s == seconds


def test_a_sumocfg_without_begin_and_end_has_none(write):
    config = read_sumocfg(write(""))
    assert (config.begin_s, config.end_s) == (None, None)


def test_a_time_that_is_none_is_refused(write):
    with pytest.raises(ScenarioError, match="end is 'noon': must be seconds, H:M:S or days:H:M:S"):
        read_sumocfg(write('<time><end value="noon"/></time>'))
    with pytest.raises(ScenarioError, match="begin is '1:30'"):
        read_sumocfg(write('<time><begin value="1:30"/></time>'))


def test_a_missing_file_is_named(write):
    with pytest.raises(ScenarioError, match=r"route-files .*gone\.xml, which does not exist"):
        read_sumocfg(write('<input><route-files value="gone.xml"/></input>'))


def test_broken_xml_is_told_with_its_place(tmp_path):
    (tmp_path / "a.sumocfg").write_text("<configuration>\n  <input")
    with pytest.raises(ScenarioError, match=r"a\.sumocfg:2:\d+: broken XML"):
        read_sumocfg(tmp_path / "a.sumocfg")
