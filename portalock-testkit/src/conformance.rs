//! The macro: one `#[test]` per case.

/// Makes a `#[test]` of each case of the suite, named `group::case`. An expression makes the stores.
///
/// The expression is evaluated once per case, inside a tokio runtime, so it can use `await`. Its value is a
/// [`Fixture`](crate::Fixture) or the `Result` of starting one. A module can have one call of the macro.
///
/// ```ignore
/// mod my_backend {
///     portalock_testkit::conformance!(super::MyFixture::new());
/// }
/// ```
///
/// A skipped case passes as a test and prints the reason; [`run`](crate::run()) reports and counts skipped cases. The
/// macro also makes an ignored test `helper_process`, which cases start as a second process. Run alone, it does
/// nothing.
#[macro_export]
macro_rules! conformance {
    ($fixture:expr) => {
        fn __portalock_suite() -> $crate::Suite {
            let suite = $crate::Suite::new(|| async { $fixture });
            match $crate::HelperCommand::test_in(::core::module_path!()) {
                ::core::option::Option::Some(helper) => suite.with_helper(helper),
                ::core::option::Option::None => suite,
            }
        }

        #[test]
        #[ignore = "the suite starts it as a second process"]
        fn helper_process() {
            $crate::process::serve(|| async { $fixture });
        }

        $crate::__conformance_tests! {
            exclusive {
                one_holder_among_clients
                a_repeated_attempt_keeps_the_grant
                one_lock_object_acquires_once
                other_names_stay_free
                tasks_never_overlap
                threads_never_overlap
                processes_exclude_each_other
                processes_never_overlap
            }
            shared {
                readers_hold_together
                a_reader_keeps_writers_out
                a_writer_keeps_readers_out
                one_readers_release_leaves_the_others
                a_repeated_attempt_counts_once
                readers_and_writers_never_overlap
                refused_unless_claimed
            }
            timeout {
                a_contended_wait_lasts_its_timeout
                a_release_ends_the_wait
                a_failed_try_does_not_wait
                a_zero_timeout_takes_a_free_lock
                a_timed_out_waiter_leaves_nothing
                a_release_at_the_deadline_strands_nothing
                waiting_leaves_the_runtime_free
                a_stalled_service_does_not_stall_the_caller
                a_cut_off_client_does_not_hang
            }
            cancellation {
                sweep_of_a_free_lock
                sweep_of_a_held_lock
                sweep_against_a_release
                sweep_of_shared_locks
                sweep_of_release
                a_dropped_waiter_is_passed_over
                aborted_tasks_leave_nothing
                an_impatient_attempt_leaves_nothing
                a_withdrawn_owner_is_never_granted
                an_unanswered_attempt_leaves_nothing
                an_attempt_that_arrives_after_its_release_leaves_nothing
            }
            release {
                a_released_lock_is_free_at_once
                a_refused_owners_release_leaves_the_holder
                a_waiters_release_leaves_the_holder
                a_late_release_leaves_the_next_holder
                releasing_twice_is_harmless
                releasing_what_was_never_asked_for_is_harmless
                a_dropped_guard_frees_the_lock
                a_dropped_guard_frees_at_once
                a_guard_dropped_outside_a_runtime_frees_the_lock
                a_guard_outlives_its_runtime
                a_closed_client_starts_anew
                a_forked_childs_copy_frees_nothing
            }
            loss {
                a_release_fires_no_loss
                a_released_grant_is_not_lost
                a_living_holder_is_never_expired
                a_lock_taken_away_fires_lost
                a_release_hides_no_loss
                a_store_that_moved_is_a_loss
                work_stops_with_the_lock
                a_lost_guard_leaves_the_next_holder
                a_cut_off_holder_is_told
                a_stalled_service_ends_the_lease
                a_restart_leaves_no_false_holder
                a_stopped_process_finds_out
            }
            hand_over {
                a_loss_during_one_leaves_one_holder
                a_waiter_that_was_given_up_is_not_granted_late
            }
            breaking {
                the_holder_is_told_who
                told_before_another_is_granted
                a_holder_that_lingers_keeps_nobody_out
                the_token_grows
                the_waiters_keep_their_places
                an_owner_that_is_gone_hits_nobody
                an_owner_that_holds_anew_keeps_its_hold
                one_reader_is_taken_out
                a_second_break_is_harmless
                a_mark_stays_until_it_is_found
                a_holder_that_does_not_respond_is_evicted
                a_stopped_process_is_evicted
                refused_unless_claimed
            }
            crash {
                a_killed_process_frees_its_lock
                a_process_that_leaves_frees_its_lock
                a_killed_reader_frees_its_share
                a_killed_waiter_is_passed_over
                a_crashed_client_frees_its_lock
                a_crashed_waiter_is_passed_over
                a_crash_frees_nobody_elses_lock
            }
            tokens {
                grow_between_clients
                grow_among_contenders
                grow_in_shared_mode
                grow_when_the_name_was_forgotten
                grow_past_a_refused_attempt
                grow_across_a_crash
                grow_between_processes
                grow_across_a_restart
                absent_unless_claimed
            }
            names {
                odd_names_are_locked_like_others
                the_longest_names_are_locked
                names_that_look_alike_are_apart
                all_names_are_held_at_once
                a_name_that_was_refused_can_be_had_later
                listed_names_are_those_that_are_held
                names_of_semaphores_are_apart
                locks_and_semaphores_are_apart
            }
            inspect {
                contention_names_the_holder
                the_holders_are_told
                every_reader_is_told
                the_waiters_are_told
                looking_changes_nothing
                refused_unless_claimed
            }
            fairness {
                one_clients_waiters_are_served_in_order
                all_clients_waiters_are_served_in_order
                a_repeated_attempt_keeps_its_place
                a_try_does_not_overtake
                a_place_that_was_given_up_moves_the_others_up
                a_waiting_writer_stops_new_readers
                a_writer_is_not_starved
                readers_behind_a_writer_go_together
                every_waiter_is_served
            }
            semaphore {
                capacity_is_never_exceeded
                all_or_none
                many_tries_at_once
                more_than_there_are_is_refused
                every_permit_can_be_held
                permits_come_back
                a_late_release_gives_back_nothing
                a_repeated_attempt_counts_once
                no_request_is_granted_beyond_its_capacity
                the_smallest_capacity_binds
                a_wait_lasts_its_timeout
                a_release_ends_the_wait
                sweep_of_permits
                a_large_request_is_not_starved
                waiters_are_served_in_order
                sweep_against_a_release
                its_claims_hold
                an_unanswered_attempt_leaves_nothing
                an_attempt_that_arrives_after_its_release_leaves_nothing
                a_crash_frees_its_permits
                a_cut_off_holder_is_told
                a_stalled_service_ends_the_lease
            }
            composite {
                every_form_of_a_backend_works
                a_reentrant_lock_counts
                reentrant_locks_exclude_each_other
                a_set_is_all_or_none
                a_set_has_one_deadline
                sets_never_deadlock
                sweep_of_a_set
                one_loss_is_the_sets_loss
                slots_make_a_semaphore
                sweep_of_slots
                the_blocking_facade_works
                blocking_threads_never_overlap
            }
            runtime {
                a_lock_outlives_its_runtime
                a_runtime_that_stands_still_loses_nothing
                one_client_serves_many_runtimes
                a_guard_dropped_beside_an_idle_runtime_is_released
                one_thread_is_enough
            }
            election {
                at_most_one_leads
                a_resigned_leader_is_followed_at_once
                a_crashed_leader_is_followed
                a_killed_leader_is_followed
                work_stops_before_another_leads
                a_cut_off_leader_stops_its_work
                observers_see_every_term_in_order
                an_observer_hears_of_a_crash
                a_step_down_is_heard
            }
            stress {
                random_history
                random_history_with_crashes
                random_history_with_losses
                a_storm_of_giving_up_strands_nobody
                many_names_at_once
            }
        }
    };
}

/// The tests of one suite. Hidden: [`conformance!`] calls it.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($($group:ident { $($case:ident)+ })+) => {$(
        mod $group {
            $(
                #[test]
                fn $case() {
                    super::__portalock_suite()
                        .check(::core::concat!(::core::stringify!($group), "::", ::core::stringify!($case)));
                }
            )+
        }
    )+};
}

#[cfg(test)]
mod tests {
    use crate::cases::{self, Case};

    /// The macro has to spell the cases out: this is what keeps its list and the suite's the same.
    #[test]
    fn the_macro_has_every_case() {
        let listed = include_str!("conformance.rs");
        let (_, listed) = listed.split_once("$crate::__conformance_tests! {").unwrap();
        let (listed, _) = listed.split_once("};").unwrap();
        let mut group = "";
        let mut ids = Vec::new();
        for line in listed.lines().map(str::trim) {
            match line.strip_suffix(" {") {
                Some(name) => group = name,
                None if line.is_empty() || line == "}" => {}
                None => ids.push(format!("{group}::{line}")),
            }
        }
        let all: Vec<String> = cases::all().map(Case::id).collect();
        assert_eq!(ids, all);
    }
}
