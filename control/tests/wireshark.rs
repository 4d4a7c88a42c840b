//! What `weir replay --write` writes, as Wireshark's own reader (tshark) shows it to people.

use std::path::Path;
use std::process::Command;

/// What tshark shows of each packet of a file: one value a field.
fn tshark(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-E", "separator=/t", "-r"]).arg(file);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is there (ci/setup.sh installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn wireshark_shows_interface_direction_verdict_and_comment_of_every_packet() {
    let scenario = weir_fixtures::root().join("scenarios/denied-by-policy");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.pcapng");
    let mut weir = Command::new(env!("CARGO_BIN_EXE_weir"));
    weir.args(["replay", "--node", "node-a", "-f"]).arg(scenario.join("snapshot.yaml"));
    let output = weir.arg("--pcap").arg(scenario.join("in.pcap")).arg("--write").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let fields =
        ["frame.interface_name", "frame.packet_flags_direction", "frame.packet_id", "frame.verdict.ebpf_xdp", "frame.comment", "ip.src"];
    let rows = tshark(&file, &fields);
    // Seven packets came in; the three that passed are there once more, as they went out.
    let came: Vec<_> = rows.iter().filter(|row| row[1] == "0x00000001").collect();
    let left: Vec<_> = rows.iter().filter(|row| row[1] == "0x00000002").collect();
    assert_eq!((came.len(), left.len(), rows.len()), (7, 3, 10), "{rows:?}");
    let denied = &came[0];
    assert_eq!((denied[0].as_str(), denied[2].as_str()), ("shop/frontend", "1"), "{denied:?}");
    for (number, row) in (1_u64..).zip(&came) {
        assert_eq!(row[2], number.to_string());
        // enum xdp_action: dropped, or redirected to another port.
        let (action, word) = if row[4].starts_with("drop: POLICY_DENIED, ingress isolated by shop/web-from-gateway") {
            ("1", "drop")
        } else {
            ("4", "forward")
        };
        assert!(row[3] == action && row[4].starts_with(word), "{row:?}");
    }
    for out in left {
        let before = came.iter().find(|row| row[2] == out[2]).unwrap();
        assert!(before[4].starts_with("forward") && before[0] != out[0], "{before:?} {out:?}");
    }
}
