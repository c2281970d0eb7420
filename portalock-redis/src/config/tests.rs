use super::*;

const SECRET: &str = "hunter2";

#[test]
fn a_password_is_never_shown() {
    for url in [
        format!("redis://user:{SECRET}@localhost/1"),
        format!("redis://:{SECRET}@localhost"),
        format!("unix:///tmp/redis.sock?pass={SECRET}"),
        format!("redis+sentinel://user:{SECRET}@a,b/master?sentinel_password={SECRET}"),
        format!("redis+cluster://user:{SECRET}@a,b"),
    ] {
        let settings = RedisSettings::new(&url).unwrap();
        assert!(!format!("{settings:?}").contains(SECRET), "{url}");
    }
    for url in [
        format!("http://:{SECRET}@localhost"),
        format!("redis://:{SECRET}@localhost/{SECRET}"),
        format!("redis://:{SECRET}@localhost/?protocol={SECRET}"),
        format!("redis://:{SECRET}@"),
        format!("redis+sentinel://:{SECRET}@a/{SECRET}?{SECRET}={SECRET}"),
        SECRET.to_owned(),
    ] {
        let error = RedisSettings::new(&url).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(SECRET), "{url}");
    }
}

#[test]
fn the_defaults_are_documented_ones() {
    let settings: RedisSettings = toml::from_str(r#"url = "redis://localhost""#).unwrap();
    assert_eq!(settings.prefix(), "portalock");
    assert_eq!(settings.session_ttl(), Duration::from_secs(4));
    assert_eq!(settings.restart_wait(), settings.session_ttl());
    assert!(!settings.release_without_notice());
    assert_eq!(settings.tick_interval(), Duration::from_millis(200));
    assert_eq!(settings.wait_replicas(), 0);
}

#[test]
fn nonsense_is_refused_by_the_name_of_its_field() {
    for (field, line) in [
        ("url", r#"url = "tcp://localhost""#),
        ("prefix", r#"prefix = """#),
        ("prefix", r#"prefix = "a/b""#),
        ("session_ttl", r#"session_ttl = "0s""#),
        ("session_ttl", "session_ttl = 10"),
        ("session_ttl", r#"session_ttl = "21m""#),
        ("tick_interval", r#"tick_interval = "11m""#),
        ("restart_wait", "restart_wait = 10"),
        (
            "release_without_notice",
            r#"release_without_notice = "yes""#,
        ),
        ("tick_interval", r#"tick_interval = "-1s""#),
        ("wait_replicas", "wait_replicas = -1"),
        ("sentinel_password", r#"sentinel_password = "x""#),
        ("sentinel_password", r#"sentinel_user = "x""#),
        ("sesion_ttl", r#"sesion_ttl = "10s""#),
        ("cluster_tags", "cluster_tags = 4"),
    ] {
        let url = if field == "url" {
            ""
        } else {
            "url = \"redis://localhost\"\n"
        };
        let error = toml::from_str::<RedisSettings>(&format!("{url}{line}")).unwrap_err();
        assert!(error.to_string().contains(field), "{line}: {error}");
    }
}

#[test]
fn a_cluster_has_tags_and_no_brace_in_its_prefix() {
    let settings = |line: &str| {
        toml::from_str::<RedisSettings>(&format!("url = \"redis+cluster://a,b\"\n{line}"))
    };
    assert_eq!(settings("").unwrap().cluster_tags(), 16);
    assert_eq!(settings("cluster_tags = 1").unwrap().cluster_tags(), 1);
    for (field, line) in [
        ("cluster_tags", "cluster_tags = 0"),
        ("cluster_tags", "cluster_tags = 1025"),
        ("prefix", "prefix = \"a{b\""),
        ("prefix", "prefix = \"}\""),
    ] {
        let error = settings(line).unwrap_err().to_string();
        assert!(error.contains(field), "{line}: {error}");
    }
}

#[test]
fn a_timeout_is_a_millisecond_to_a_year() {
    let settings = || RedisSettings::new("redis://localhost").unwrap();
    for time in [Duration::from_micros(999), Duration::MAX] {
        assert!(settings().with_connect_timeout(time).is_err());
        assert!(settings().with_response_timeout(time).is_err());
    }
    let shortest = Duration::from_millis(1);
    assert!(settings().with_connect_timeout(shortest).is_ok());
}
