//! What happens to vRoTs is told as it happens to everybody who follows it.

use std::io::Write;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::follower::Follower;
use crate::support::http::ask;
use crate::support::vmm::{Vmm, define_index};
use crate::support::{Host, TENANT};

#[test]
fn what_becomes_of_a_vrot_is_told_as_it_happens() -> Result<()> {
    // On a busy machine it would be told as well that state is not durable within half a second.
    let host = Host::enrolled_with("durability_deadline_ms = 5000\n")?;
    let mut follower = Follower::at(&host.socket(), "")?;
    assert_eq!(follower.hello["kind"], "hello");
    let vm = host.create()?;
    let created = follower.tells(&vm, &["created", "certified"])?;
    assert_eq!(created[0]["tenant"], TENANT);
    assert_eq!(created[0]["number"], follower.hello["next"]);
    assert_eq!(created[0]["details"]["generation"], 1);
    assert_eq!(
        created[1]["details"]["not_after"],
        host.json(["show", &vm])?["vik_not_after"]
    );

    host.ctl(["start", &vm])?;
    follower.tells(&vm, &["started"])?;
    let vmm = Vmm::attach(&host.control(&vm)?)?;
    follower.tells(&vm, &["attached"])?;
    drop(vmm);
    follower.tells(&vm, &["detached"])?;

    kill(Pid::from_raw(host.backend(&vm)?), Signal::SIGKILL)?;
    let ended = follower.tells(&vm, &["stopped", "restarted"])?;
    assert_eq!(ended[0]["details"]["cause"], "backend-ended");
    host.ctl(["stop", &vm])?;
    let stopped = follower.tells(&vm, &["stopped"])?;
    assert_eq!(stopped[0]["details"]["cause"], "ordered");
    host.ctl(["delete", &vm])?;
    let deleted = follower.tells(&vm, &["deleted"])?;

    let all = Follower::at(&host.socket(), "?after=0")?;
    assert_eq!(
        all.hello["next"].as_u64(),
        deleted[0]["number"].as_u64().map(|last| last + 1)
    );
    Ok(())
}

#[test]
fn a_follower_of_a_manager_that_went_away_hears_what_happened_since() -> Result<()> {
    let mut host = Host::enrolled_with("backend_restarts_per_hour = 0\n")?;
    let vm = host.create_certified(TENANT)?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    let mut before = Follower::at(&host.socket(), "?after=0")?;
    let told = before.tells(&vm, &["created", "certified", "started", "attached"])?;
    let last = told[3]["number"].as_u64().context("a number")?;
    let manager = before.hello["manager"]
        .as_str()
        .context("an id")?
        .to_owned();

    host.crash()?;
    assert!(before.next().is_err() || before.next()?.is_none());
    define_index(&mut vmm, 0x0150_0001)?;
    host.start_again()?;
    let query = format!("?after={last}&manager={manager}");
    let mut after = Follower::at(&host.socket(), &query)?;
    ensure!(after.hello["manager"] != manager.as_str());
    after.tells(&vm, &["degraded", "durable"])?;
    drop(vmm);

    host.lose_power()?;
    let mut after = Follower::at(&host.socket(), "?after=0")?;
    let restarted = after.next()?.context("an event")?;
    assert_eq!(restarted["kind"], "host-restarted");
    assert_eq!(restarted["details"]["boot"], "after-power-loss");
    ensure!(restarted.get("vm").is_none());
    let stopped = after.tells(&vm, &["stopped"])?;
    assert_eq!(stopped[0]["details"]["cause"], "backend-ended");
    Ok(())
}

#[test]
fn a_follower_that_does_not_read_holds_up_nobody_and_an_ending_manager_ends_streams() -> Result<()>
{
    let mut host = Host::enrolled()?;
    let mut deaf = Vec::new();
    for _ in 0..50 {
        let mut stream = UnixStream::connect(host.socket())?;
        write!(
            stream,
            "GET /v1/events?after=0 HTTP/1.1\r\nhost: localhost\r\n\r\n"
        )?;
        deaf.push(stream);
    }
    let mut follower = Follower::at(&host.socket(), "")?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    follower.tells(&vm, &["created", "certified", "started"])?;
    ensure!(host.metric("vrot_event_followers")? >= 51.0);
    ensure!(host.shut_down()?.success());
    assert_eq!(follower.next()?, None);
    ensure!(
        !host.log().contains("kept its connection"),
        "{}",
        host.log()
    );
    Ok(())
}

#[test]
fn what_is_asked_for_in_vain_is_told() -> Result<()> {
    let host = Host::start()?;
    for query in ["after=-1", "after=x", "before=1", "manager=1"] {
        let answer = ask(&host.socket(), "GET", &format!("/v1/events?{query}"), "")?;
        assert_eq!(answer.status, 400, "{query}: {}", answer.body);
    }
    Ok(())
}
