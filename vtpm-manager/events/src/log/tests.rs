//! What followers are told, and what they are not.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api_types::wire::Event;
use cert_chain::{VmId, VrotId};

use super::*;
use crate::Follower;

fn place(tenant: &str) -> Result<Place> {
    Ok(Place {
        vm: VmId::random(),
        vrot: VrotId::random(),
        tenant: tenant.parse()?,
    })
}

fn tell(log: &EventLog, tenant: &str) -> Result<()> {
    log.tell(place(tenant)?, EventKind::Started, EventDetails::default());
    Ok(())
}

fn of(tenant: &str) -> Result<Scope> {
    Ok(Scope::Tenant(tenant.parse()?))
}

/// The lines that are there, without waiting for more.
async fn lines(follower: &mut Follower) -> Result<Vec<EventLine>> {
    let mut lines = Vec::new();
    while let Ok(Some(text)) =
        tokio::time::timeout(Duration::from_millis(50), follower.next()).await
    {
        for line in std::str::from_utf8(&text)?.lines() {
            lines.push(serde_json::from_str(line)?);
        }
    }
    Ok(lines)
}

fn events(lines: &[EventLine]) -> Vec<&Event> {
    let events = lines.iter().filter_map(|line| match line {
        EventLine::Event(event) => Some(event),
        _ => None,
    });
    events.collect()
}

#[tokio::test]
async fn a_tenant_is_told_of_its_own_vms_under_numbers_without_gaps() -> Result<()> {
    let log = Arc::new(EventLog::default());
    let mut acme = log.follow(of("acme")?, None, None);
    for tenant in ["other", "acme", "Acme", "other", "acme", "other"] {
        tell(&log, tenant)?;
    }
    let told = lines(&mut acme).await?;
    let told = events(&told);
    assert_eq!(
        told.iter().map(|event| event.number).collect::<Vec<_>>(),
        [1, 2]
    );
    let acme: Tenant = "acme".parse()?;
    assert!(
        told.iter()
            .all(|event| event.tenant.as_ref() == Some(&acme))
    );
    Ok(())
}

#[tokio::test]
async fn a_follower_goes_on_where_it_was_and_from_the_beginning_after_a_restart() -> Result<()> {
    let log = Arc::new(EventLog::default());
    for _ in 0..3 {
        tell(&log, "acme")?;
    }
    let numbers = async |after, of| -> Result<Vec<u64>> {
        let mut follower = log.follow(Scope::Host, after, of);
        let told = lines(&mut follower).await?;
        Ok(events(&told).iter().map(|event| event.number).collect())
    };
    assert!(numbers(None, None).await?.is_empty());
    assert_eq!(numbers(Some(0), None).await?, [1, 2, 3]);
    assert_eq!(numbers(Some(2), Some(log.manager)).await?, [3]);
    assert!(numbers(Some(3), None).await?.is_empty());
    assert_eq!(numbers(Some(2), Some(Uuid::new_v4())).await?, [1, 2, 3]);
    assert_eq!(numbers(Some(700), None).await?, [1, 2, 3]);
    assert_eq!(numbers(Some(u64::MAX), None).await?, [1, 2, 3]);
    Ok(())
}

#[tokio::test]
async fn a_follower_that_was_too_slow_is_told_what_it_missed() -> Result<()> {
    let log = Arc::new(EventLog::default());
    let mut follower = log.follow(of("acme")?, None, None);
    let happened = KEPT_OF_TENANT + 10;
    for _ in 0..happened {
        tell(&log, "acme")?;
    }
    let told = lines(&mut follower).await?;
    assert!(matches!(
        told.first(),
        Some(EventLine::Hello { next: 1, .. })
    ));
    assert_eq!(told.get(1), Some(&EventLine::Missed { from: 1, to: 10 }));
    let numbers: Vec<u64> = events(&told).iter().map(|event| event.number).collect();
    let last = u64::try_from(happened)?;
    assert_eq!(numbers, (11..=last).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn what_others_do_does_not_shorten_what_is_kept_of_a_tenant() -> Result<()> {
    let log = Arc::new(EventLog::default());
    tell(&log, "acme")?;
    for _ in 0..KEPT_OF_HOST + KEPT_OF_TENANT {
        tell(&log, "other")?;
    }
    let mut acme = log.follow(of("acme")?, Some(0), None);
    let told = lines(&mut acme).await?;
    assert!(matches!(
        told.first(),
        Some(EventLine::Hello {
            oldest: 1,
            next: 2,
            ..
        })
    ));
    assert_eq!(events(&told).len(), 1);
    Ok(())
}

#[tokio::test]
async fn what_happens_to_the_host_is_told_to_each_tenant_with_vms_there() -> Result<()> {
    let log = Arc::new(EventLog::default());
    let mut followers = Vec::new();
    for tenant in ["acme", "other", "third"] {
        followers.push(log.follow(of(tenant)?, None, None));
    }
    let here: [Tenant; 2] = ["acme".parse()?, "other".parse()?];
    log.tell_all(&here, EventKind::HostRestarted, EventDetails::default());
    let mut told = Vec::new();
    for follower in &mut followers {
        told.push(events(&lines(follower).await?).len());
    }
    assert_eq!(told, [1, 1, 0]);
    Ok(())
}

#[tokio::test]
async fn tenants_beyond_number_cost_no_memory_and_no_number_comes_twice() -> Result<()> {
    let log = Arc::new(EventLog::default());
    let mut followed = log.follow(of("followed")?, None, None);
    for _ in 0..5 {
        tell(&log, "first")?;
    }
    for number in 0..3 * MOST_TENANTS {
        tell(&log, &format!("tenant-{number}"))?;
    }
    assert!(log.sequences().tenants.len() <= MOST_TENANTS);
    // Its sequence was given up meanwhile.
    let mut first = log.follow(of("first")?, Some(5), Some(log.manager));
    tell(&log, "first")?;
    let told = lines(&mut first).await?;
    let [event] = events(&told)[..] else {
        bail!("{told:?}");
    };
    assert!(event.number > 5, "{event:?}");
    tell(&log, "followed")?;
    let told = lines(&mut followed).await?;
    assert_eq!(events(&told).first().context("told")?.number, 1);
    Ok(())
}

#[tokio::test]
async fn numbers_that_begin_anew_tell_nothing_of_what_happened_to_others() -> Result<()> {
    // Shorter than any machine runs before it runs this.
    const WHILE: Duration = Duration::from_secs(1);
    for events_of_others in [1, 2000] {
        let log = Arc::new(EventLog::default());
        log.sequences().began = Instant::now().checked_sub(WHILE).context("a second ago")?;
        for _ in 0..events_of_others {
            tell(&log, "busy")?;
        }
        for number in 0..MOST_TENANTS {
            tell(&log, &format!("tenant-{number}"))?;
        }
        let mut new = log.follow(of("new")?, None, None);
        tell(&log, "new")?;
        let told = lines(&mut new).await?;
        let first = events(&told).first().context("told")?.number;
        let elapsed = log.sequences().began.elapsed();
        let times = u64::try_from(WHILE.as_micros())?..=u64::try_from(elapsed.as_micros())?;
        assert!(times.contains(&first), "{first} is not within {times:?}");
    }
    Ok(())
}

#[tokio::test]
async fn followers_end_with_the_manager() -> Result<()> {
    let log = Arc::new(EventLog::default());
    let mut follower = log.follow(Scope::Host, None, None);
    follower.next().await.context("hello")?;
    assert_eq!(log.followers(), 1);
    let (end, ()) = tokio::join!(follower.next(), async { log.end() });
    assert_eq!(end, None);
    drop(follower);
    assert_eq!(log.followers(), 0);
    let mut late = log.follow(Scope::Host, None, None);
    late.next().await.context("hello")?;
    assert_eq!(late.next().await, None);
    Ok(())
}

#[tokio::test]
async fn a_follower_gets_a_sign_of_life_while_nothing_happens() -> Result<()> {
    let log = Arc::new(EventLog::default());
    let mut follower = log.follow(Scope::Host, None, None);
    follower.next().await.context("hello")?;
    follower.keep_alive = Duration::from_millis(1);
    assert_eq!(follower.next().await.as_deref(), Some(&b"\n"[..]));
    Ok(())
}
