//! One daemon at a time, across a crash.

mod program;

#[test]
fn a_second_instance_is_told_who_runs_and_a_stale_pid_file_is_taken_over() {
    let said = program::run("pidfile_daemon");
    let lines: Vec<_> = said.lines().collect();
    let [serving, refused, killed, second_life, now, stopped, gone] = lines[..] else {
        panic!("not the seven lines that were expected:\n{said}");
    };
    let pid = |line: &str| {
        let (daemon, _) = line.split_once(':').expect("who speaks");
        daemon.trim_start_matches("daemon ").to_owned()
    };
    let (first, third) = (pid(serving), pid(second_life));
    assert!(serving.ends_with(": serving"), "{said}");
    assert!(
        refused.contains(&format!(": not started, pid {first} is ")),
        "{said}"
    );
    assert!(
        killed.starts_with(&format!(
            "killed; its pid file still says {first}, which is "
        )),
        "{said}"
    );
    assert_ne!(first, third, "{said}");
    assert_eq!(now, format!("the pid file says {third}"), "{said}");
    assert_eq!(stopped, format!("daemon {third}: stopped"), "{said}");
    assert_eq!(gone, "the pid file is gone", "{said}");
}
