use std::sync::atomic::Ordering::Relaxed;

use super::*;

fn zone(zone: &str) -> Locality {
    Locality { zone: zone.to_owned(), ..Locality::default() }
}

fn all(store: &LoadStore, now: Instant) -> Vec<ClusterReport> {
    store.take(|_| true, now)
}

#[test]
fn a_request_is_in_progress_until_it_ends_and_counted_once() {
    let (store, start) = (LoadStore::default(), Instant::now());
    let cluster = store.cluster(&"a".into(), "eds", start);
    let here = cluster.locality(&zone("here"));
    assert_eq!(all(&store, start), [], "nothing happened");

    let (mut good, bad, open) = (here.issue(), here.issue(), here.issue());
    good.judge(false);
    good.judge(true);
    drop((good, bad));
    let first = all(&store, start + Duration::from_secs(2));
    let want = LocalityReport {
        locality: zone("here"),
        issued: 3,
        successful: 1,
        failed: 1,
        in_progress: 1,
        ..LocalityReport::default()
    };
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].cluster.as_str(), first[0].service.as_str()), ("a", "eds"));
    assert_eq!((first[0].interval, &first[0].localities[..]), (Duration::from_secs(2), &[want][..]));

    let second = all(&store, start + Duration::from_secs(5));
    let now = &second[0].localities[0];
    assert_eq!((now.issued, now.successful, now.failed, now.in_progress), (0, 0, 0, 1), "still in progress");
    assert_eq!(second[0].interval, Duration::from_secs(3), "measured from the report before");
    drop(open);
    let third = &all(&store, start)[0].localities[0].clone();
    assert_eq!((third.issued, third.failed, third.in_progress), (0, 1, 0));
    assert_eq!(all(&store, start), [], "told once");
}

#[test]
fn what_nobody_wants_to_hear_of_does_not_add_up() {
    let (store, start) = (LoadStore::default(), Instant::now());
    let kept = store.cluster(&"kept".into(), "", start);
    let late = |n: u32| start + n * Duration::from_secs(60);
    for n in 0..10_000 {
        let cluster = store.cluster(&ClusterName::new(format!("c{n}")), "", late(n));
        drop(cluster.locality(&zone("here")).issue());
    }
    let names = store.names();
    assert!(names.len() < 200 && names.contains(&kept.cluster), "{}", names.len());
    // The control: of the last hour nothing is lost.
    assert!((9_941..10_000).all(|n| names.contains(&ClusterName::new(format!("c{n}")))));
}

#[test]
fn what_was_held_back_after_all_did_not_begin() {
    let (store, now) = (LoadStore::default(), Instant::now());
    let cluster = store.cluster(&"a".into(), "", now);
    let here = cluster.locality(&zone("here"));
    here.issue().withdraw();
    assert_eq!(all(&store, now), [], "as if nothing had happened");
    // One that was told in between is made up for, and nothing goes below zero.
    let (told, again) = (here.issue(), here.issue());
    assert_eq!(all(&store, now)[0].localities[0].issued, 2);
    told.withdraw();
    again.withdraw();
    drop(here.issue());
    let after = &all(&store, now)[0].localities[0];
    assert_eq!((after.issued, after.failed, after.in_progress), (0, 1, 0));
    // One of the two is still to be made up for, whatever was reported meanwhile.
    let told = here.issue();
    assert_eq!(all(&store, now)[0].localities[0].issued, 0);
    drop(told);
    drop(here.issue());
    assert_eq!(all(&store, now)[0].localities[0].issued, 1);
}

#[test]
fn drops_are_counted_by_category_and_in_total() {
    let (store, now) = (LoadStore::default(), Instant::now());
    let cluster = store.cluster(&"a".into(), "", now);
    let (lb, throttle) = (cluster.drops("lb"), cluster.drops("throttle"));
    lb.fetch_add(2, Relaxed);
    throttle.fetch_add(1, Relaxed);
    cluster.refused();
    let [report] = &all(&store, now)[..] else { panic!("one cluster") };
    assert_eq!(report.drops, [("lb".to_owned(), 2), ("throttle".to_owned(), 1)]);
    assert_eq!((report.dropped, report.localities.len()), (4, 0), "a breaker's drop has no category");
    lb.fetch_add(1, Relaxed);
    assert_eq!(all(&store, now)[0].dropped, 1);
}

#[test]
fn a_cluster_that_is_not_wanted_keeps_its_numbers_and_its_time() {
    let (store, start) = (LoadStore::default(), Instant::now());
    let cluster = store.cluster(&"a".into(), "", start);
    let other = store.cluster(&"b".into(), "", start);
    drop((cluster.locality(&zone("z")).issue(), other.locality(&zone("z")).issue()));
    let later = start + Duration::from_secs(1);
    let names = |reports: Vec<ClusterReport>| reports.into_iter().map(|r| r.cluster.to_string()).collect::<Vec<_>>();
    assert_eq!(names(store.take(|name| name.as_str() == "b", later)), ["b"]);
    let reports = all(&store, start + Duration::from_secs(2));
    assert_eq!((reports.len(), reports[0].localities[0].issued), (1, 1));
    assert_eq!(reports[0].interval, Duration::from_secs(2));
}

#[test]
fn what_is_out_of_use_is_told_to_its_end_and_then_forgotten() {
    let (store, now) = (LoadStore::default(), Instant::now());
    let cluster = store.cluster(&"a".into(), "", now);
    let same = store.cluster(&"a".into(), "", now);
    assert!(Arc::ptr_eq(&cluster, &same), "two users of a cluster count in one place");
    let open = cluster.locality(&zone("z")).issue();
    drop((cluster, same));
    assert_eq!(all(&store, now)[0].localities[0].in_progress, 1);
    assert_eq!(store.names(), ["a".into()], "a request is under way");
    drop(open);
    assert_eq!(all(&store, now)[0].localities[0].failed, 1);
    assert_eq!(store.names(), []);
}

#[test]
fn a_cluster_in_use_is_never_forgotten_and_a_locality_out_of_use_is() {
    let (store, now) = (LoadStore::default(), Instant::now());
    let cluster = store.cluster(&"a".into(), "", now);
    let kept = cluster.locality(&zone("kept"));
    drop(cluster.locality(&zone("gone")).issue());
    all(&store, now);
    all(&store, now);
    assert_eq!(store.names(), ["a".into()]);
    let known: Vec<_> = cluster.parts.lock().localities.keys().cloned().collect();
    assert_eq!(known, [zone("kept")]);
    drop(kept.issue());
    assert_eq!(all(&store, now)[0].localities[0].issued, 1, "the handle still counts");
}

#[test]
fn a_new_cluster_wakes_who_waits_for_one() {
    let store = LoadStore::default();
    let mut added = store.added();
    assert!(!added.has_changed().unwrap());
    store.cluster(&"a".into(), "", Instant::now());
    assert!(added.has_changed().unwrap());
    added.mark_unchanged();
    assert!(!added.has_changed().unwrap());
}

/// gRFC A85.
#[test]
fn only_the_metrics_that_policy_names_are_passed_on() {
    let (store, now) = (LoadStore::default(), Instant::now());
    let cluster = store.cluster(&"a".into(), "", now);
    let load = cluster.locality(&zone("z"));
    let metrics = vec![("named_metrics.queue".to_owned(), 2.0), ("named_metrics.bad".to_owned(), f64::NAN)];
    let report = EndpointReport { cpu: 0.5, utilization: 0.25, metrics, ..EndpointReport::default() };
    let wants = |names: &[&str]| LoadReport { metrics: names.iter().map(|&name| name.to_owned()).collect() };
    let passed = |policy: &LoadReport| {
        load.report(&report, policy);
        load.report(&report, policy);
        let reports = all(&store, now);
        let metrics = reports.into_iter().flat_map(|r| r.localities).flat_map(|l| l.metrics);
        metrics.map(|(name, metric)| (name, metric.requests, metric.sum)).collect::<Vec<_>>()
    };
    let two = |name: &str, sum| (name.to_owned(), 2, sum);
    assert_eq!(passed(&wants(&[])), [], "the default passes nothing on");
    assert_eq!(passed(&wants(&["cpu_utilization"])), [two("cpu_utilization", 1.0)]);
    assert_eq!(passed(&wants(&["named_metrics.queue"])), [two("named_metrics.queue", 4.0)]);
    let every = wants(&["named_metrics.*", "application_utilization"]);
    assert_eq!(passed(&every), [two("application_utilization", 0.5), two("named_metrics.queue", 4.0)]);
}

/// R38: their names are the endpoints' own.
#[test]
fn names_of_metrics_without_end_are_kept_up_to_a_bound_until_they_are_reported() {
    let (store, now) = (LoadStore::default(), Instant::now());
    let cluster = store.cluster(&"a".into(), "", now);
    let load = cluster.locality(&zone("z"));
    let every = LoadReport { metrics: vec!["named_metrics.*".to_owned()] };
    let kept = |names: std::ops::Range<usize>| {
        for name in names.clone().chain(names) {
            let metrics = vec![(format!("named_metrics.{name}"), 1.0)];
            load.report(&EndpointReport { metrics, ..EndpointReport::default() }, &every);
        }
        let metrics = all(&store, now).into_iter().flat_map(|r| r.localities).flat_map(|l| l.metrics);
        metrics.map(|(_, metric)| metric.requests).collect::<Vec<_>>()
    };
    assert_eq!(kept(0..1000), [2; MOST_METRICS], "the first ones go on being counted");
    assert_eq!(kept(2000..2010), [2; 10], "and once they are reported there is room");
}

#[test]
fn numbers_of_many_threads_add_up_while_they_are_read() {
    let (store, now) = (LoadStore::default(), Instant::now());
    let cluster = store.cluster(&"a".into(), "", now);
    let load = cluster.locality(&zone("z"));
    let mut sum = Counts::default();
    let mut take = || {
        for report in all(&store, now).into_iter().flat_map(|r| r.localities) {
            sum.issued += report.issued;
            sum.successful += report.successful;
            sum.failed += report.failed;
            // How many that is has no bound here: the reader may stand still between what ended and what began.
            assert_eq!(sum.in_progress(), report.in_progress);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn({
                    let load = &load;
                    move || (0..5_000).for_each(|_| load.issue().judge(n % 2 == 0))
                })
            })
            .collect();
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            take();
        }
    });
    take();
    assert_eq!(sum, Counts { issued: 20_000, successful: 10_000, failed: 10_000 });
}
